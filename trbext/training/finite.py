"""Stops a run whose logits, loss or gradient are NaN or infinite, before the optimizer step that would spread it.

transformers logs such a loss as the mean of earlier ones and steps all the same: every weight is NaN from there on, and
so is every checkpoint.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..errors import NonFiniteTraining


def stop_non_finite(what: str, value: Any, step: int, student: torch.nn.Module) -> None:
    """NonFiniteTraining unless `value`, the loss or the gradient norm of optimizer step `step` (from 1), is finite.

    student: asked, only then, whether its weights are finite themselves, which tells where to look.
    """
    number = float(value)
    if math.isfinite(number):
        return
    spoilt = [name for name, weight in student.named_parameters() if not _is_finite(weight)]
    where = (
        f"the student's weights are not finite, {spoilt[0]} first: begin from another checkpoint"
        if spoilt
        else "the student's weights are finite: look for NaN or infinite logits of the teacher, or lower the "
        "learning_rate"
    )
    raise NonFiniteTraining(
        f"the {what} of optimizer step {step} is {number}, so the run stopped before that step; checkpoints of earlier "
        f"steps are as they were. {where[0].upper()}{where[1:]}"
    )


def _is_finite(weight: torch.Tensor) -> bool:
    # ZeRO-3 leaves a weight empty, FSDP2 a shard: both are looked at as far as this process holds them.
    local = getattr(weight, "to_local", lambda: weight)()
    return not local.is_floating_point() or bool(torch.isfinite(local).all())
