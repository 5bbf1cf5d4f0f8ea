"""Launches five kernels for a profiler."""

from __future__ import annotations

import torch

import trbext

from .timings import BFLOAT16, EPSILON, FLOAT32, V, rows_on

LAUNCHES = (
    ("solve", 256, V, BFLOAT16),
    ("sample", 256, V, BFLOAT16),
    ("solve", 1, V, BFLOAT16),
    ("solve", 256, V, FLOAT32),
    ("solve", 256, 262_144, BFLOAT16),
)


def run(device: str) -> None:
    """Launches each kernel once to load it, and once more for the profiler (`ncu --profile-from-start off`)."""
    for profiled in (False, True):
        if profiled and device != "cpu":
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStart()
        for name, count, vocab, dtype in LAUNCHES:
            launch(name, *((1, 4096) if device == "cpu" else (count, vocab)), dtype, device)
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStop()


def launch(name: str, count: int, vocab: int, dtype: torch.dtype, device: str) -> None:
    """Calls one operator on fresh rows.

    Args:
        name: The operator.
        count: Rows.
        vocab: Tokens per row.
        dtype: Of both logits.
        device: "cuda" or "cpu".
    """
    student, teacher = rows_on(device, count, vocab, dtype)
    if name == "solve":
        trbext.solve(student, teacher, EPSILON)
    else:
        uniform = torch.full((count,), 0.5, dtype=torch.float64, device=device)
        trbext.sample(student, teacher, EPSILON, uniform=uniform)
