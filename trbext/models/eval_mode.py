"""Puts models into eval mode for as long as they decode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(models: Iterable[nn.Module]) -> Iterator[None]:
    """Puts models into eval mode inside; on leaving, every submodule gets its own flag back (some may be frozen)."""
    modules = [module for model in models for module in model.modules()]
    flags = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, training in zip(modules, flags, strict=True):
            module.training = training
