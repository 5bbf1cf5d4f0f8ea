"""Computes the metrics of the rollouts of an optimizer step: means over every token of every process.

A mean of the means of processes would weight a token by how few tokens its process happened to generate.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..generation import Generation
from .blend_metrics import blend_metrics, speculation_metrics

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


def rollout_metrics(
    generation: Generation, epsilon: float | None, accelerator: Accelerator, *, of_student: bool = False
) -> dict[str, float]:
    """Computes how the KL budget was spent, and how far the rollouts are blended. Every process calls it.

    Args:
        generation: Of one optimizer step.
        epsilon: The budget in nats per token; None for a policy without one.
        accelerator: Of the run.
        of_student: The rollouts are those of the student itself. beta and KL are 0 by definition, and nothing is
            gathered.

    Returns:
        The metrics by name. A metric that does not exist for the policy is left out: epsilon and its use without a
        finite budget, beta if mu is no geometric blend.
    """
    if of_student:
        beta = kl = torch.zeros(1)
    else:
        spent = torch.cat(
            [torch.stack([rollout.beta[rollout.mask], rollout.kl[rollout.mask]]) for rollout in generation.rollouts], 1
        )
        padded = accelerator.pad_across_processes(spent, dim=1, pad_index=-1)  # beta and KL are never negative
        beta, kl = accelerator.gather(padded[None]).transpose(0, 1).flatten(1)
        beta, kl = beta[beta >= 0], kl[kl >= 0]
    return blend_metrics(beta, kl, epsilon)


def drafting_metrics(generation: Generation, accelerator: Accelerator) -> dict[str, float]:
    """Computes the gain of speculation, and the memory of the teacher's states. Every process calls it.

    Args:
        generation: Of one optimizer step, with the teacher's states still in it.
        accelerator: Of the run.

    Returns:
        The acceptance and the tokens per teacher pass, unless all rollouts were decoded in lockstep; and the GiB of
        teacher states on the process with the most.
    """
    mine = (*_speculation(generation), generation.teacher_state_bytes / 2**30)
    gathered = accelerator.gather(torch.tensor([mine], dtype=torch.float32, device=accelerator.device))
    return {"trb/teacher_states_gib": float(gathered[:, -1].max()), **_gain(gathered)}


def engine_metrics(generation: Generation, accelerator: Accelerator) -> dict[str, float]:
    """Computes how the engine fared. Every process calls it.

    Args:
        generation: Of one optimizer step or evaluation batch, whose rollouts an engine drew.
        accelerator: Of the run.

    Returns:
        The seconds for sending the student's weights on the slowest process; of an engine that holds the teacher also
        the acceptance and the tokens per teacher pass, the rollouts that were drawn again from where drafts were lost,
        and, if the engine counts them, its preemptions.
    """
    preemptions = [draw.preemptions for draw in generation.draws]
    mine = (
        *_speculation(generation),
        sum(draw.repaired for draw in generation.draws),
        sum(count or 0 for count in preemptions),
        generation.sync_seconds,
    )
    gathered = accelerator.gather(torch.tensor([mine], dtype=torch.float32, device=accelerator.device))
    metrics = {"trb/sync_seconds": float(gathered[:, -1].max())}
    if generation.draws:
        metrics |= {**_gain(gathered), "trb/repaired_rows": float(gathered[:, -3].sum())}
        if None not in preemptions:
            metrics["trb/preemptions"] = float(gathered[:, -2].sum())
    return metrics


def _speculation(generation: Generation) -> tuple[int, int, int, int]:
    """Drafts accepted and tested, tokens written, and passes of the teacher over rows, of one process."""
    speculative = [(rollout, rollout.speculation) for rollout in generation.rollouts if rollout.speculation is not None]
    return (
        sum(part.accepted for _, part in speculative),
        sum(part.drafted for _, part in speculative),
        sum(int(rollout.mask.sum()) for rollout, _ in speculative),
        sum(part.row_passes for _, part in speculative),
    )


def _gain(gathered: Tensor) -> dict[str, float]:
    """Returns the gain of speculation, from the numbers of `_speculation` in the first columns, one row per process."""
    return speculation_metrics(*gathered.sum(0)[:4].tolist())


def warn_of_idle_budget(metrics: dict[str, float], step: int) -> bool:
    """Warns, and returns True, if beta is 0 at most tokens of optimizer step `step` although there is a budget."""
    idle = metrics.get("trb/beta_zero_fraction", 0.0)
    if not metrics.get("trb/epsilon", 0.0) > 0 or idle <= 0.5:
        return False
    logger.warning(
        "beta is 0 at %.0f %% of the tokens of step %d, so these rollouts are the student's own: the teacher excludes "
        "tokens (logits of -inf, as a top-k teacher has) of which the student's mass costs more than the budget of "
        "%g nats",
        100 * idle,
        step,
        metrics["trb/epsilon"],
    )
    return True
