"""Computes what TRBTrainer logs of an optimizer step from what verl's replicas and actors have said of it."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import numpy as np
import torch

from ..training.metrics.blend_metrics import blend_metrics, speculation_metrics
from .answers import VALUES, TokenFacts
from .loss_plugin import KL_SUM, PREFIXES, STUDENT_MASS_SUM, TEACHER_MASS_SUM

# verl puts the name of the worker before what an actor says.
OF_ACTOR = {
    KL_SUM: "trb/reverse_kl",
    STUDENT_MASS_SUM: "trb/student_top_mass",
    TEACHER_MASS_SUM: "trb/teacher_top_mass",
}


def check_rollouts(counters: Sequence[dict[str, Any]]) -> None:
    """Checks that no rollout failed, which verl would leave out of its step.

    Args:
        counters: Of each replica.

    Raises:
        RuntimeError: One did. Names the replica and the error.
    """
    for replica, one in enumerate(counters):
        if one.get("error") is not None:
            raise RuntimeError(f"a rollout of replica {replica} failed, so the step would lack it: {one['error']}")


def rollout_metrics(facts: Sequence[TokenFacts], counters: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns the metrics of the rollouts of a step, by the names that TRBTrainer gives them.

    Args:
        facts: Of each rollout; at least one, with at least one token.
        counters: Of each replica, since the rollouts were asked for.

    Raises:
        RuntimeError: Rollouts have unlike budgets, so they are not of one step.
    """
    budgets = {one.epsilon for one in facts}
    if len(budgets) != 1:
        raise RuntimeError(f"all rollouts of a step must have one budget, got {sorted(budgets)}")
    values = torch.from_numpy(np.concatenate([one.values for one in facts], axis=1))
    of = dict(zip(VALUES, values, strict=True))
    drafted, accepted, passes = (sum(one[name] for one in counters) for name in ("tokens", "accepted", "row_passes"))
    return {
        **blend_metrics(of["beta"], of["kl"], budgets.pop()),
        "trb/teacher_log_prob": of["teacher_log_prob"].mean().item(),
        **speculation_metrics(accepted, drafted, sum(len(one.tokens) for one in facts), passes),
        "trb/repaired_rows": float(sum(one.repaired for one in facts)),
    }


def take_actor_metrics(metrics: MutableMapping[str, Any]) -> dict[str, float]:
    """Returns the means of what the actors have summed up, and removes the sums.

    Args:
        metrics: That verl is about to log.
    """
    count = metrics.pop(f"actor/{PREFIXES}", None)
    sums = {name: metrics.pop(f"actor/{total}", None) for total, name in OF_ACTOR.items()}
    return {name: float(total / count) for name, total in sums.items() if count and total is not None}
