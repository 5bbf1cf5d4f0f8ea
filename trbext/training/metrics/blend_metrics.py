"""Computes the metrics of rollouts from the values of their tokens, for the trainer and for verl."""

from __future__ import annotations

import math

from torch import Tensor


def blend_metrics(beta: Tensor, kl: Tensor, epsilon: float | None) -> dict[str, float]:
    """Returns how the KL budget was spent, and how far rollouts are blended.

    Args:
        beta: [N] of every token; empty if mu is no geometric blend.
        kl: [N] nats, likewise; at least one.
        epsilon: The budget in nats per token; None for a policy without one.

    Returns:
        The metrics by name. A metric that does not exist for the policy is left out: epsilon and its use without a
        finite budget, beta if mu is no geometric blend.
    """
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


def speculation_metrics(accepted: float, drafted: float, tokens: float, passes: float) -> dict[str, float]:
    """Returns the gain of speculation.

    Args:
        accepted: Drafts that became tokens.
        drafted: Drafts that were tested.
        tokens: That were written.
        passes: Of the teacher, counted once for each rollout.

    Returns:
        The acceptance and the tokens per pass of the teacher; nothing if it did not pass.
    """
    if not passes > 0:
        return {}
    return {"trb/acceptance": accepted / drafted, "trb/tokens_per_teacher_pass": tokens / passes}


def _percentile(values: Tensor, percent: int) -> float:
    """Returns the nearest-rank percentile. torch.quantile refuses more than 2^24 values, which long rollouts exceed."""
    return values.kthvalue(max(1, math.ceil(len(values) * percent / 100))).values.item()
