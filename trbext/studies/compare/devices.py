"""Divides the machine among the runs of a study: GPUs and cores."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch


def visible_gpus() -> list[str]:
    """The GPUs that runs may be spread over, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    return [name.strip() for name in named.split(",") if name.strip()]


def least_used(gpus: Sequence[str], in_use: Sequence[str | None]) -> str | None:
    """The GPU of the next run, that with the fewest runs; None where there is nothing to choose."""
    return min(gpus, key=in_use.count) if len(gpus) > 1 else None


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
