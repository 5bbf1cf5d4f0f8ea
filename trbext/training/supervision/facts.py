"""Collects the log-weights and labels of a rollout's tokens that a loss reads."""

from __future__ import annotations

from torch import Tensor

from ..generation import Generation


def facts_of_tokens(
    generation: Generation, completion_ids: Tensor, estimator: str | None, *, weighted: bool
) -> dict[str, Tensor]:
    """Returns what the estimator of a loss needs of rollouts that are not the student's own.

    Args:
        generation: Of one optimizer step.
        completion_ids: [B, C], the completions of the batch, in the order of the rollouts.
        estimator: `loss_estimator` of the run.
        weighted: `loss_weighted` of the run.

    Returns:
        [B, C] each, by the names of a batch: "log_weight", log pi_S - log mu, and "accepted", the labels.
    """
    facts = {}
    if estimator in ("sampled", "routed") and weighted:
        facts["log_weight"] = generation.log_weights(completion_ids)
    if estimator == "routed":
        facts["accepted"] = generation.accepted(completion_ids)
    return facts
