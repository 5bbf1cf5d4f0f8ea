"""Puts models into eval mode for as long as they decode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    pass


@contextmanager
def evaluating(models: Iterable[nn.Module]) -> Iterator[None]:
    """Eval mode inside, every submodule's own flag back outside (a trainer may have frozen some)."""
    modules = [module for model in models for module in model.modules()]
    flags = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, training in zip(modules, flags, strict=True):
            module.training = training
