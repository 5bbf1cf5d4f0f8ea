"""Gives a student all weights of its checkpoint, or names the one that is missing.

transformers' trainer only matches names, and continues with a warning. It would leave a mixture of experts as it was,
because the model holds the experts of a layer together, and its checkpoint holds each by itself.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from ...models.adapters import adapter_fault
from ...models.loading import fault_in, reported_once
from .completeness import IncompleteCheckpoint, weight_files

if TYPE_CHECKING:
    from peft import PeftModel


def load_weights(model: PreTrainedModel, checkpoint: Path) -> None:
    """Replaces the weights of `model` by those in a checkpoint.

    Args:
        model: Whole and not quantized.
        checkpoint: A folder with weights.

    Raises:
        IncompleteCheckpoint: A weight is missing, is of another shape, or has no place in the model.
    """
    # Weights of several precisions are read in the one that holds them all, and rounded back to their own.
    precision = functools.reduce(torch.promote_types, {parameter.dtype for parameter in model.parameters()})
    try:
        with reported_once():
            loaded: Any = type(model).from_pretrained(
                checkpoint,
                config=model.config,
                dtype=precision,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # of any kind: a file that is missing or damaged, a conversion that fails
        raise IncompleteCheckpoint(f"{checkpoint} cannot be resumed: {_in_one_line(error)}") from error
    of_checkpoint, report = loaded
    fault = fault_in(report, of_checkpoint)
    if fault is not None:
        raise IncompleteCheckpoint(f"{checkpoint} cannot be resumed exactly: it {fault}")
    model.load_state_dict(of_checkpoint.state_dict())


def check_adapter(model: PeftModel, checkpoint: Path) -> None:
    """Checks that a checkpoint holds the weights of the model's active adapter, by name and shape.

    Raises:
        IncompleteCheckpoint: It does not.
    """
    fault = adapter_fault(model, checkpoint)
    if fault is not None:
        raise IncompleteCheckpoint(f"{checkpoint} cannot be resumed exactly: {fault}")


def has_weights(checkpoint: Path) -> bool:
    """Returns whether `checkpoint` holds the weights of a whole model."""
    return any(path.name.startswith(("model", "pytorch_model")) for path in weight_files(checkpoint))


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.400}"
