"""Stops a run whose loss or gradient is NaN or infinite, before the optimizer step that would spread it.

transformers logs such a loss as the mean of earlier ones and makes the step: every weight is NaN from then on, and so
is every checkpoint.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..errors import NonFiniteTraining


def stop_non_finite(what: str, value: Any, step: int, student: torch.nn.Module) -> None:
    """Checks the loss or the gradient norm of an optimizer step.

    Args:
        what: "loss" or "gradient norm", for the error.
        value: A number, or a tensor [].
        step: The optimizer step, from 1.
        student: Its weights are checked only if `value` is not finite, to tell what is at fault.

    Raises:
        NonFiniteTraining: `value` is NaN or infinite.
    """
    number = float(value)
    if math.isfinite(number):
        return
    spoiled = [name for name, weight in student.named_parameters() if not _is_finite(weight)]
    where = (
        f"the student's weights are not finite, {spoiled[0]} first: begin from another checkpoint"
        if spoiled
        else "the student's weights are finite: look for NaN or infinite logits of the teacher, or lower the "
        "learning_rate"
    )
    raise NonFiniteTraining(
        f"the {what} of optimizer step {step} is {number}, so the run stopped before that step; checkpoints of earlier "
        f"steps are as they were. {where[0].upper()}{where[1:]}"
    )


def _is_finite(weight: torch.Tensor) -> bool:
    # ZeRO-3 leaves a weight empty, FSDP2 a shard: each is checked as far as this process holds it.
    local = getattr(weight, "to_local", lambda: weight)()
    return not local.is_floating_point() or bool(torch.isfinite(local).all())
