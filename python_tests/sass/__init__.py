"""Reads static facts about compiled kernels: registers, spills, and the instructions in the loops of their machine
code.

    cubin = sass.compile_cubin(Path("probe.cu"), "sm_90", "-Icsrc")
    assert cubin.resources["probe"].spill_bytes == 0
    print(sass.loops(cubin.function("probe"))[0].per(pairs=8))

nvcc compiles to machine code (SASS), ptxas -v reports the resources, nvdisasm prints the code; no GPU is needed.
"""

from .cubin import Cubin, Resources, compile_cubin, parse_resources
from .disassembly import Function, Instruction, parse_functions
from .kinds import Kind, kind_of
from .loops import Loop, PerPair, converged, loops
from .ptx_lines import PlacedInstruction, executed, placed_instructions
from .shipped import shipped_cubins
from .toolchain import ARCHITECTURES, find_nvcc, find_nvdisasm, find_tool, missing_tool, supported

__all__ = [
    "ARCHITECTURES",
    "Cubin",
    "Function",
    "Instruction",
    "Kind",
    "Loop",
    "PerPair",
    "PlacedInstruction",
    "Resources",
    "compile_cubin",
    "converged",
    "executed",
    "find_nvcc",
    "find_nvdisasm",
    "find_tool",
    "kind_of",
    "loops",
    "missing_tool",
    "parse_functions",
    "parse_resources",
    "placed_instructions",
    "shipped_cubins",
    "supported",
]
