"""Puts models into eval mode for as long as they decode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def evaluating(models: Iterable[Any]) -> Iterator[None]:
    """Puts models into eval mode inside; on leaving, every submodule gets its own flag back (some may be frozen).

    Args:
        models: Each has `modules()`, as `nn.Module`.
    """
    modules = [module for model in models for module in model.modules()]
    flags = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, training in zip(modules, flags, strict=True):
            module.training = training
