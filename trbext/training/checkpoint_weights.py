"""Gives a student the weights of its checkpoint, all of them, or says which one is not there.

transformers' trainer matches names alone and continues with a warning. It so leaves a mixture of experts as it was:
the model holds the experts of a layer together, and its checkpoint holds each apart.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from ..models.adapters import adapter_fault
from ..models.loading import fault_in, reported_once
from .checkpoint import IncompleteCheckpoint, weight_files

if TYPE_CHECKING:
    from peft import PeftModel


def load_weights(model: PreTrainedModel, checkpoint: Path) -> None:
    """Replace the weights of `model`, which is whole and not quantized, by those in the folder `checkpoint`.

    Raises:
        IncompleteCheckpoint: a weight is missing, is of another shape, or has no place in the model.
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
    """IncompleteCheckpoint unless the weights of `checkpoint` are, by name and shape, those of the active adapter."""
    fault = adapter_fault(model, checkpoint)
    if fault is not None:
        raise IncompleteCheckpoint(f"{checkpoint} cannot be resumed exactly: {fault}")


def has_weights(checkpoint: Path) -> bool:
    """Whether `checkpoint` holds the weights of a whole model."""
    return any(path.name.startswith(("model", "pytorch_model")) for path in weight_files(checkpoint))


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.400}"
