"""Interprets PTX on numpy: runs what nvcc emits, one numpy lane per CUDA thread, and reports bugs.

It checks for faults that a GPU does not report: out-of-bounds and misaligned accesses, reads of uninitialized bytes,
races on shared and distributed shared memory, divergent barriers, partial-warp collectives, accesses to blocks of a
cluster that have ended, launch limits. It counts memory requests per allocation. It does not model speed, caches, or
the memory model between blocks.
"""

from .coverage import unsupported_statements
from .findings import KINDS, Finding
from .launch import Result, launch
from .memory.device import Device
from .memory.traffic import Traffic
from .text.compiler import compile_ptx, find_nvcc
from .text.syntax import Kernel, Module

__all__ = [
    "KINDS",
    "Device",
    "Finding",
    "Kernel",
    "Module",
    "Result",
    "Traffic",
    "compile_ptx",
    "find_nvcc",
    "launch",
    "unsupported_statements",
]
