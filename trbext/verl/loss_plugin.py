"""Registers the distillation loss `trb_reverse_kl` with verl, for its FSDP actors.

verl computes top-k losses where the actor has its logits, in `compute_topk_loss`, which knows forward KL only whatever
loss is registered. It is therefore replaced by a function that calls the stock one for every other loss.
"""

from __future__ import annotations

import functools
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..training.losses import in_chunks
from ..training.teachers.top_divergence import reverse_kl_of_top
from ..vllm.sampler.teacher_top import TeacherTop
from ..vllm.server.stored_alignment import align_stored
from ..vocab import Alignment
from .teacher_rows import top_of_rows

LOSS = "trb_reverse_kl"
STRATEGIES = ("fsdp", "fsdp2", "veomni")  # whose actors have whole rows of logits
# Sums over the tokens of a batch, of which the trainer makes means: micro-batches and processes have unlike many.
KL_SUM, STUDENT_MASS_SUM, TEACHER_MASS_SUM = (
    "trb/reverse_kl_sum",
    "trb/student_top_mass_sum",
    "trb/teacher_top_mass_sum",
)
PREFIXES = "trb/prefixes"


def register_loss() -> None:
    """Registers the loss, once in a process."""
    from verl.trainer.distillation import losses

    if LOSS in losses.DISTILLATION_LOSS_REGISTRY:
        return
    losses.register_distillation_loss(losses.DistillationLossSettings(names=[LOSS], use_topk=True))(token_losses)
    stock = losses.compute_topk_loss

    @functools.wraps(stock)
    def compute(config: Any, distillation_config: Any, data: Any, student_logits: Tensor, data_format: str) -> Any:
        chosen = logits_losses if distillation_config.distillation_loss.loss_mode == LOSS else stock
        return chosen(config, distillation_config, data, student_logits, data_format)

    losses.compute_topk_loss = compute


def logits_losses(
    config: Any, distillation_config: Any, data: Any, student_logits: Tensor, data_format: str
) -> dict[str, Tensor]:
    """Computes the losses of a micro-batch from its logits, as verl's `compute_topk_loss` is called.

    Args:
        config: verl's ActorConfig, with the model's.
        distillation_config: verl's DistillationConfig, which names the teacher.
        data: With `teacher_ids` and `teacher_logprobs`, nested [B, S, k + 1].
        student_logits: [1, N, V], divided by the temperature; of this rank if sequences are sharded.
        data_format: "thd", packed sequences.

    Returns:
        [1, N] each: `packed_reverse_kl`.

    Raises:
        ValueError: The actor's strategy, a clamp of the loss or the width of the teacher's rows does not fit.
    """
    from verl.utils.ulysses import get_ulysses_sequence_parallel_world_size, slice_input_tensor

    loss_config = distillation_config.distillation_loss
    if config.strategy not in STRATEGIES:
        raise ValueError(f"{LOSS} needs an actor whose strategy is {', '.join(STRATEGIES)}, got {config.strategy!r}")
    if loss_config.log_prob_min_clamp is not None:
        raise ValueError(
            f"{LOSS} clamps no log-probability: log_prob_min_clamp must be null, got {loss_config.log_prob_min_clamp}"
        )
    rows = [data[name].values().unsqueeze(0) for name in ("teacher_ids", "teacher_logprobs")]
    if get_ulysses_sequence_parallel_world_size() > 1:
        rows = [slice_input_tensor(part, dim=1) for part in rows]
    ids, log_probs = rows
    if ids.shape[-1] != loss_config.topk + 1:
        raise ValueError(
            f"{LOSS} needs distillation_loss.topk + 1 = {loss_config.topk + 1} columns of the teacher, got "
            f"{ids.shape[-1]}: set rollout.agent.agent_loop_manager_class to trbext.verl.agent_loop.TRBAgentLoopManager"
        )
    alignment = alignment_of(config, distillation_config)
    found = packed_reverse_kl(student_logits[0], ids[0], log_probs[0], alignment)
    return {name: values.unsqueeze(0) for name, values in found.items()}


def token_losses(
    config: Any, distillation_config: Any, model_output: dict[str, Tensor], data: Any
) -> tuple[Tensor, dict[str, Any]]:
    """Returns what `logits_losses` found for the completions, as verl's registered losses do.

    Returns:
        [B, T] nats, and metrics of the tokens that count.
    """
    from verl.utils.metric import AggregationType, Metric
    from verl.workers.utils.padding import no_padding_2_padding

    losses, student_mass, teacher_mass = (
        no_padding_2_padding(model_output[name], data)
        for name in ("distillation_losses", "student_mass", "teacher_mass")
    )
    mask = data["response_mask"]
    mask = (mask.to_padded_tensor(0) if mask.is_nested else mask).bool()
    sums = {KL_SUM: losses.detach(), STUDENT_MASS_SUM: student_mass, TEACHER_MASS_SUM: teacher_mass}
    metrics: dict[str, Any] = {
        name: Metric(AggregationType.SUM, values[mask].double().sum()) for name, values in sums.items()
    }
    metrics[PREFIXES] = Metric(AggregationType.SUM, int(mask.sum()))
    return torch.where(mask, losses, 0.0), metrics


def alignment_of(config: Any, distillation_config: Any) -> Alignment:
    """Aligns the actor's model with its teacher, by the stored models.

    Raises:
        ValueError: There is no one teacher.
    """
    teachers = [teacher.model_path for teacher in distillation_config.teacher_models.values()]
    if len(teachers) != 1:
        raise ValueError(f"{LOSS} needs one teacher in distillation.teacher_models, got {len(teachers)}")
    model = config.model_config
    return _aligned(model.local_path, teachers[0], bool(model.trust_remote_code))


@cache
def _aligned(student: str, teacher: str, trust_remote_code: bool) -> Alignment:
    return align_stored(student, teacher, trust_remote_code=trust_remote_code)


def packed_reverse_kl(
    student_logits: Tensor, teacher_ids: Tensor, teacher_log_probs: Tensor, alignment: Alignment
) -> dict[str, Tensor]:
    """Computes the reverse KL over k + 1 outcomes, as `trbext.reverse_kl` with `top_k` does.

    Args:
        student_logits: [N, V], already divided by the temperature, any float dtype. The only argument with a gradient.
        teacher_ids: [N, k + 1] int32, rows of `trbext.verl.teacher_rows`.
        teacher_log_probs: [N, k + 1] float32, nats.
        alignment: The vocabulary that both models share.

    Returns:
        By verl's names, [N] float32 each: `distillation_losses` in nats, and without a gradient `student_mass` and
        `teacher_mass`, the probability of the k tokens.
    """

    def terms(logits: Tensor, ids: Tensor, log_probs: Tensor) -> tuple[Tensor, ...]:
        top = top_of_rows(ids, log_probs)
        aligned = alignment.canonical(logits)
        return reverse_kl_of_top(aligned, top), _mass(aligned.detach(), top)

    kl, student_mass = in_chunks(terms, student_logits.shape[-1], student_logits, teacher_ids, teacher_log_probs)
    teacher_mass = teacher_log_probs[:, :-1].exp().sum(-1)
    return {"distillation_losses": kl, "student_mass": student_mass, "teacher_mass": teacher_mass}


def _mass(logits: Tensor, top: TeacherTop) -> Tensor:
    """Returns the student's probability [n] of the top tokens."""
    precise = logits.float()
    chosen = precise.gather(-1, top.ids.long().clamp(min=0)) - precise.logsumexp(-1, keepdim=True)
    return chosen.exp().masked_fill(top.ids < 0, 0.0).sum(-1)
