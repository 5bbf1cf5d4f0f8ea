"""Makes random numbers independent of what was drawn before: by their place in a run, and after a block of code."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def generator_at(*place: int) -> torch.Generator:
    """Returns a generator on the CPU whose numbers follow from `place` only: the seed of a run and a position in it."""
    seed = np.random.SeedSequence(place).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))


@contextmanager
def forked_random_state(device: torch.device) -> Iterator[None]:
    """Restores the global generators of Python, NumPy and torch (the CPU's and that of `device`) on leaving."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type not in ("cpu", "mps") else []  # MPS has one generator, of no device
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
