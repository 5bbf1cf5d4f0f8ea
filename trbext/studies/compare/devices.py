"""Divides the machine among the runs of a study: GPUs and cores."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch


def visible_gpus() -> list[str]:
    """Returns the GPUs that runs may be divided among, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    return [name.strip() for name in named.split(",") if name.strip()]


def least_used(gpus: Sequence[str], in_use: Sequence[str | None]) -> str | None:
    """Returns the GPU with the fewest runs for the next run, None if there is at most one."""
    return min(gpus, key=in_use.count) if len(gpus) > 1 else None


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
