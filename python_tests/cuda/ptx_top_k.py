"""Launches the PTX of the kernel over rows whose teacher is k tokens (csrc/cuda/top_k_rows.cu)."""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

from ptxsim import Device, Kernel, Module, compile_ptx
from python_tests.cuda.ptx_arguments import KernelArgs, address_of
from trbext import TopK

THREADS, BYTES_PER_BLOCK, BLOCK_TOKENS = 512, 16, 1024


class TopKTeacher(ctypes.Structure):
    """The structure of csrc/operators/top_k_teacher.h."""

    _fields_ = (
        ("ids", ctypes.c_uint64),
        ("id_row_stride", ctypes.c_int64),
        ("id_stride", ctypes.c_int64),
        ("log_probs", ctypes.c_uint64),
        ("log_prob_row_stride", ctypes.c_int64),
        ("log_prob_stride", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("int64_ids", ctypes.c_bool),
    )


class TopKArgs(ctypes.Structure):
    """The structure of csrc/cuda/top_k_args.h."""

    _fields_ = (("call", KernelArgs), ("teacher", TopKTeacher))


@functools.cache
def top_k_kernel(sources: Path, arch: int) -> Kernel:
    (kernel,) = Module.parse(compile_ptx(sources / "top_k_rows.cu", arch)).kernels.values()
    return kernel


def launch_options(sources: Path, arch: int, device: Device, args: KernelArgs, teacher: TopK) -> dict[str, Any]:
    """Returns the kernel and how the host launches a block of it, as csrc/cuda/launch/top_k_operators.cpp does."""
    ids, log_probs = teacher
    described = TopKTeacher(
        address_of(device, ids, "ids") if ids.numel() else 0, *ids.stride(),
        address_of(device, log_probs, "log_probs") if ids.numel() else 0, *log_probs.stride(),
        ids.shape[1], ids.element_size() == 8,
    )  # fmt: skip
    return {
        "kernel": top_k_kernel(sources, arch),
        "block": THREADS,
        "args": [bytes(TopKArgs(args, described))],
        "shared": BYTES_PER_BLOCK * math.ceil(args.vocab / BLOCK_TOKENS),
    }
