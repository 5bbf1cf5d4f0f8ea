"""Imports packages without searching the objects that they make for garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected_imports() -> Iterator[None]:
    """Turns the garbage collector off for a block of imports, and leaves what exists at its end out of its sight.

    TRL and what it needs make over a million objects that stay. Searching them again and again takes a fifth of the
    start of a command, and searching them once more 0.8 s at the end of each training.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
