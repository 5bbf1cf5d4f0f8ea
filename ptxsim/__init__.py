"""A PTX interpreter on numpy: runs the PTX that nvcc emits, one numpy lane per CUDA thread, and reports bugs.

It checks what a GPU would silently get wrong: bounds, alignment, uninitialised reads, races on shared and distributed
shared memory, divergent barriers, partial-warp collectives, lives of the blocks of a cluster, launch limits. It counts
memory requests per allocation. It says nothing about speed, caches, or the memory model between blocks.
"""

from .compiler import compile_ptx, find_nvcc
from .coverage import unsupported_statements
from .device import Device
from .findings import KINDS, Finding
from .launch import Result, launch
from .syntax import Kernel, Module
from .traffic import Traffic

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
