"""Reads the saved state of a callback from a checkpoint."""

from __future__ import annotations

from typing import Any

from transformers import TrainerState
from transformers.trainer_callback import ExportableState


def saved_attributes(callback: ExportableState, state: TrainerState) -> dict[str, Any]:
    """Returns the callback's `state()` in the checkpoint from which training continues; at the start, the present one.

    A checkpoint that was written without the callback has no entry. It gets one, because transformers' next save would
    look for it.
    """
    states: Any = state.stateful_callbacks  # by class name, once training has begun
    attributes: dict[str, Any] = states.setdefault(type(callback).__name__, callback.state())["attributes"]
    return attributes
