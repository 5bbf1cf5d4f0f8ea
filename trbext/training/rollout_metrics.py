"""What a TRB step is logged by: means over every token of every process, one collective each.

A mean of per-process means would weight a token by how few its process happened to generate.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..rollout import Rollout

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .losses import TeacherTerms

logger = logging.getLogger(__name__)


def rollout_metrics(
    rollouts: Sequence[Rollout], epsilon: float | None, accelerator: Accelerator, *, of_student: bool = False
) -> dict[str, float]:
    """Where the rollouts of one optimizer step stand between student and teacher. Every process calls it.

    epsilon: the budget in nats per token; None for a policy without one. A metric that does not exist for the policy is
        left out: of epsilon and its use without a finite budget, of beta where mu is no geometric blend.
    of_student: the rollouts are the student's own, beta and KL are 0 by definition and nothing is gathered.
    """
    if of_student:
        beta = kl = torch.zeros(1)
    else:
        spent = torch.cat(
            [torch.stack([rollout.beta[rollout.mask], rollout.kl[rollout.mask]]) for rollout in rollouts], 1
        )
        padded = accelerator.pad_across_processes(spent, dim=1, pad_index=-1)  # beta and KL are never negative
        beta, kl = accelerator.gather(padded[None]).transpose(0, 1).flatten(1)
        beta, kl = beta[beta >= 0], kl[kl >= 0]
    kl_mean = kl.mean().item()
    metrics = {"trb/kl": kl_mean, "trb/kl_max": kl.max().item()}
    if epsilon is not None and math.isfinite(epsilon):
        metrics |= {"trb/epsilon": epsilon, "trb/kl_budget_used": kl_mean / epsilon if epsilon > 0 else 0.0}
    if len(beta) > 0:
        metrics |= {
            "trb/beta_mean": beta.mean().item(),
            "trb/beta_p10": _percentile(beta, 10),
            "trb/beta_p90": _percentile(beta, 90),
            "trb/beta_one_fraction": (beta == 1).float().mean().item(),
            "trb/beta_zero_fraction": (beta == 0).float().mean().item(),
        }
    return metrics


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


def tokens_per_second(tokens: int, seconds: float, accelerator: Accelerator) -> float:
    """Generated tokens of all processes per second of the slowest one, which the others wait for."""
    mine = torch.tensor([[tokens, seconds]], dtype=torch.float32, device=accelerator.device)
    counts, times = accelerator.gather(mine).T
    return float(counts.sum() / times.max())


def _percentile(values: Tensor, percent: int) -> float:
    """Nearest-rank percentile; torch.quantile refuses more than 2^24 values, a step of long rollouts has more."""
    return values.kthvalue(max(1, math.ceil(len(values) * percent / 100))).values.item()


class PrefixMeans:
    """Token means of what the loss saw, over the steps between two logs."""

    def __init__(self) -> None:
        self._totals: Tensor | None = None  # see `sums`, over all processes

    @staticmethod
    def sums(reverse_kl_sum: Tensor, prefixes: Tensor, teacher: TeacherTerms) -> Tensor:
        """[5] what one micro-batch of one process adds: sum of reverse KL, prefixes, sum of teacher entropy, sum of
        teacher log-probability over the tokens the teacher does not exclude (one excluded token would make the mean
        -inf), their number."""
        allowed = teacher.log_prob > -torch.inf
        log_prob = torch.where(allowed, teacher.log_prob, 0.0)
        parts = (reverse_kl_sum, prefixes, teacher.entropy.sum(), log_prob.sum(), allowed.sum())
        return torch.stack([part.detach().to(log_prob.dtype) for part in parts])

    def add(self, sums: Tensor, accelerator: Accelerator) -> None:
        """Add every process's `sums`. Every process calls it."""
        total = accelerator.reduce(sums, reduction="sum")
        self._totals = total if self._totals is None else self._totals + total

    def pop(self) -> dict[str, float]:
        """The means since the last call, without any communication; empty when nothing was added."""
        if self._totals is None:
            return {}
        reverse_kl, prefixes, entropy, log_prob, allowed = self._totals.tolist()
        self._totals = None
        return {
            "trb/reverse_kl": reverse_kl / prefixes if prefixes else math.nan,
            "trb/teacher_entropy": entropy / prefixes if prefixes else math.nan,
            "trb/teacher_log_prob": log_prob / allowed if allowed else math.nan,
        }
