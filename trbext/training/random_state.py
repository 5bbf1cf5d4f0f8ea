"""Keeps what happens in a block out of the random numbers drawn after it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def forked_random_state(device: torch.device) -> Iterator[None]:
    """Restores, on leaving, the global generators of Python, NumPy and torch (the CPU's and that of `device`)."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type not in ("cpu", "mps") else []  # MPS has one generator, of no device
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
