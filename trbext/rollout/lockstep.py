"""Lockstep decoding: at every step both models see the same prefix, and a behavior policy draws the next token.

    token_t ~ mu( . | prompt, token_<t),   mu = pi_S^(1-beta) pi_T^beta / Z,   KL(mu || pi_S) <= epsilon

for the policy of arXiv 2605.31159; `rollout/policies.py` has it and others. Each model keeps its own KV cache; the rows
of a left-padded batch share one clock. Rows that have ended leave the batch at the next host read, so a long row does
not pay for short ones.

Randomness: as many uniforms per step and row of the original batch as the policy takes, all drawn before the first
step. A row's draws do not depend on when other rows end, and the generator moves on by a fixed count of numbers
(max_new_tokens * B for TRB) however long completions get. The first uniform of each token is the same for all policies.

Host reads: reading a GPU tensor from Python drains the GPU's queue, so the loop reads one status per row, and only
where `next_host_read` says: 4 times in 16 tokens, 15 in 64, 51 in 1024, 275 in 8192. With SDPA attention transformers
itself reads nothing either while decoding (its mask code would; see `CachedModel.advance`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..vocab import Alignment
from .cached_model import CachedModel, next_token_exists, unwrap
from .output import Rollout
from .policies import Policy, TrustRegion

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RUNNING, ENDED, FAULT = 0, 1, 2  # what is known of a row, from its first event on


def lockstep(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    epsilon: float | Tensor | None = None,
    policy: Policy | None = None,
    optimizer_step: int = 0,
    max_new_tokens: int,
    alignment: Alignment,
    pad_token_id: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Rollout:
    """Completions of a batch of prompts, drawn from the behavior policy.

    student, teacher: causal LMs with a KV cache, on one device. Both run in eval mode without gradients and get their
        training flags back afterwards, so neither dropout nor gradient checkpointing reaches the rollout. Parameters
        sharded over processes (FSDP, ZeRO-3) must be gathered first: each process decodes as long as its own rows need.
    input_ids, attention_mask: [B, P], left padded.
    epsilon: KL budget per token in nats, 0 to inf, or one per row, [B]. The float 0 is pure student sampling: the
        teacher is never called and may be None. It uses the same uniforms, so it is the limit of small budgets. Short
        for `policy=TrustRegion(epsilon)`; give one of the two.
    policy: who draws the tokens. The teacher may be None where the policy does not need it at `optimizer_step`.
    optimizer_step: 0-based, for policies that change over a run.
    max_new_tokens: length limit of a completion. A row ends earlier when it draws `alignment.stop`.
    alignment: the vocabulary both models share (`trbext.vocab.align`).
    temperature: > 0, divides both models' logits.
    generator: on any device; None is the default generator of the prompts' device. The same seed gives a bitwise equal
        rollout. A row's rollout depends on its prompt, its index in the batch and the seed alone, up to the rounding of
        the models' own kernels, which may change with the batch size.

    ValueError: shapes; a mask that is not left padding; a negative or NaN budget; no teacher for a policy that needs
        one; models on different devices; completions that would outgrow `max_position_embeddings`.
    RuntimeError: a model without a KV cache; logits with NaN, +inf or nothing finite, naming row, step and model.
    """
    if (epsilon is None) == (policy is None):
        raise ValueError(f"give epsilon or policy, one of the two, got epsilon = {epsilon} and policy = {policy}")
    if epsilon is not None:
        _check_epsilon(epsilon, input_ids)
        policy = TrustRegion(epsilon.to(input_ids.device, torch.float32) if isinstance(epsilon, Tensor) else epsilon)
    assert policy is not None
    asks_teacher = policy.needs_teacher(optimizer_step)
    if teacher is None and asks_teacher:
        needs = f"for {type(policy).__name__}" if epsilon is None else "unless epsilon is 0"
        raise ValueError(f"teacher must be a model {needs}, got None with epsilon {epsilon}")
    models = [student, teacher] if asks_teacher and teacher is not None else [student]
    input_ids, prompt_mask, lengths = _check_prompts(input_ids, attention_mask)
    _check_models(models, input_ids.shape[1], max_new_tokens)

    (batch, width), device = input_ids.shape, input_ids.device
    tokens = torch.zeros((batch, max_new_tokens), dtype=torch.int64, device=device)
    values = torch.zeros((5, batch, max_new_tokens), dtype=torch.float32, device=device)  # in trbext.Sample's order
    source = device if generator is None else generator.device
    planes = policy.uniforms_per_token
    uniforms = torch.rand((planes * max_new_tokens, batch), dtype=torch.float64, generator=generator, device=source)
    uniforms = uniforms.to(device).view(planes, max_new_tokens, batch)
    if policy.uniforms_per_row:
        planes = policy.uniforms_per_row
        of_row = torch.rand((planes, batch), dtype=torch.float64, generator=generator, device=source).to(device)
        uniforms = torch.cat([uniforms, of_row[:, None].expand(-1, max_new_tokens, -1)])

    # Of the rows still in the batch: index in the original batch, status, prompt length, mask of all columns.
    rows = torch.arange(batch, device=device)
    status = torch.full_like(rows, RUNNING)
    position = lengths.to(device)[:, None]
    mask = F.pad(prompt_mask, (0, max_new_tokens), value=1)
    padded = bool((lengths < width).any())
    read_at = next_host_read(0)
    with torch.no_grad(), _evaluating(models):
        caches = [CachedModel(model) for model in models]
        logits = [cached.prefill(input_ids, prompt_mask) for cached in caches]
        for step in range(max_new_tokens):
            aligned = [alignment.canonical(raw, temperature, in_place=True) for raw in logits]
            student_logits, teacher_logits = aligned[0], aligned[1] if asks_teacher else None
            drawn = policy.draw(optimizer_step, student_logits, teacher_logits, uniforms[:, step, rows], temperature)
            tokens[rows, step] = drawn.token
            values[:, rows, step] = torch.stack(drawn[1:]).float()
            event = torch.where(drawn.token < 0, FAULT, (drawn.token == alignment.stop) * ENDED)
            status = torch.where(status == RUNNING, event, status)
            token = drawn.token.clamp(min=0)  # a row at fault goes on with a harmless id until the next host read

            generated = step + 1
            if generated in (read_at, max_new_tokens):
                state = host_read(status)
                _raise_fault(state, rows, (input_ids, prompt_mask), tokens, models)
                running = (state == RUNNING).nonzero()[:, 0]
                if len(running) == 0 or generated == max_new_tokens:
                    break
                if len(running) < len(state) and all(cached.can_drop_rows for cached in caches):
                    lengths, keep = lengths[running], running.to(device)
                    padded = bool((lengths < width).any())
                    rows, status, position, mask, token = (x[keep] for x in (rows, status, position, mask, token))
                    policy = policy.keep_rows(keep)
                    for cached in caches:
                        cached.keep_rows(keep)
                read_at = next_host_read(generated)
            seen = mask[:, : width + generated] if padded else None
            logits = [cached.advance(token, position + step, seen) for cached in caches]

    stopped = tokens[:, :generated] == alignment.stop
    finished = stopped.any(1)
    completed = torch.where(finished, stopped.int().argmax(1) + 1, generated)
    return Rollout.trim(tokens, values, completed, finished, pad_token_id=pad_token_id, teacher=asks_teacher)


def next_host_read(generated: int) -> int:
    """How many tokens to have generated when the host next asks which rows ended: an eighth more, by steps of 4 to 32.
    A row is then decoded at most that far beyond its end."""
    return generated + min(32, max(4, generated // 8))


def host_read(status: Tensor) -> Tensor:
    """`status` on the CPU: the only place where decoding waits for the GPU."""
    return status.cpu()


def _raise_fault(
    state: Tensor, rows: Tensor, prompts: tuple[Tensor, Tensor], tokens: Tensor, models: list[PreTrainedModel]
) -> None:
    """Name the first row at fault, if there is one, and the model to blame.

    The operator has told that a row is at fault; whose logits they were is found out by one more forward of the prefix,
    which costs nothing while all is well.
    """
    faulty = (state == FAULT).nonzero()[:, 0]
    if len(faulty) == 0:
        return
    row = int(rows[faulty[0]])
    step = int((tokens[row] < 0).int().argmax())
    input_ids, mask = prompts
    prefix = torch.cat([input_ids[row][mask[row] != 0], tokens[row, :step]])[None]
    culprits = [
        name
        for name, model in zip(("student", "teacher"), models, strict=False)
        if not next_token_exists(model, prefix)
    ]
    whose = " and ".join(f"the {name}" for name in culprits) or "both models together"
    raise RuntimeError(
        f"row {row}, step {step}: no token can be drawn, the logits of {whose} hold NaN, +inf or no finite value "
        f"({len(faulty)} of {len(state)} rows at fault)"
    )


@contextmanager
def _evaluating(models: Iterable[nn.Module]) -> Iterator[None]:
    """Eval mode inside, every submodule's own flag back outside (a trainer may have frozen some)."""
    modules = [module for model in models for module in model.modules()]
    flags = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, training in zip(modules, flags, strict=True):
            module.training = training


def _check_epsilon(epsilon: float | Tensor, input_ids: Tensor) -> None:
    if not isinstance(epsilon, Tensor):
        if not epsilon >= 0:
            raise ValueError(f"epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got {epsilon}")
        return
    if epsilon.shape != input_ids.shape[:1]:
        raise ValueError(
            f"epsilon must be a float or one budget per prompt, [{len(input_ids)}], got shape {list(epsilon.shape)}"
        )
    wrong = (~(epsilon >= 0)).nonzero()[:, 0].tolist()
    if wrong:
        raise ValueError(
            "epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got "
            f"{float(epsilon[wrong[0]])} in row {wrong[0]}"
        )


def _check_prompts(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The prompts without the columns that are padding in every row, their mask (int64), their lengths [B] (on CPU)."""
    if input_ids.dim() != 2 or 0 in input_ids.shape or attention_mask.shape != input_ids.shape:
        raise ValueError(
            "input_ids and attention_mask must have one shape [B, P] with B, P >= 1, got "
            f"{list(input_ids.shape)} and {list(attention_mask.shape)}"
        )
    mask = attention_mask.to(input_ids.device, torch.int64)
    host = mask.cpu()
    lengths = host.sum(1)
    left_padded = (host == (torch.arange(host.shape[1]) >= host.shape[1] - lengths[:, None])).all(1) & (lengths > 0)
    if not left_padded.all():
        row = int(left_padded.int().argmin())
        raise ValueError(
            f"attention_mask must be left padded, zeros and then at least one 1 in every row; row {row} is not"
        )
    longest = int(lengths.max())
    return input_ids[:, -longest:], mask[:, -longest:], lengths


def _check_models(models: list[PreTrainedModel], prompt: int, max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    devices = {}
    for name, model in zip(("student", "teacher"), models, strict=False):
        inner = unwrap(model)
        limit = getattr(inner.config.get_text_config(), "max_position_embeddings", math.inf)
        if prompt + max_new_tokens > limit:
            raise ValueError(
                f"the {name} has max_position_embeddings = {limit}, but the longest prompt ({prompt} tokens) and "
                f"max_new_tokens ({max_new_tokens}) need {prompt + max_new_tokens}"
            )
        parameter = next(inner.parameters())
        # Not where the model is spread by a device map or sharded (FSDP2's DTensor, ZeRO-3): that moves inputs itself.
        if not hasattr(inner, "hf_device_map") and type(parameter) is nn.Parameter and not hasattr(parameter, "ds_id"):
            devices[name] = parameter.device
    if len(set(devices.values())) > 1:
        raise ValueError(f"student and teacher must be on one device, got {devices}")
