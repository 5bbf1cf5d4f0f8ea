"""Reads what a checkpoint holds of a callback."""

from __future__ import annotations

from typing import Any

from transformers import TrainerState
from transformers.trainer_callback import ExportableState


def saved_attributes(callback: ExportableState, state: TrainerState) -> dict[str, Any]:
    """What the checkpoint that training goes on from holds of a callback's `state()`; at the start, its present one.

    A checkpoint written without the callback has no entry, and transformers' next save would look for one: it gets one.
    """
    states: Any = state.stateful_callbacks  # by class name, once training has begun
    attributes: dict[str, Any] = states.setdefault(type(callback).__name__, callback.state())["attributes"]
    return attributes
