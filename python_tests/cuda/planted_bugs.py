"""Bugs planted in the CUDA sources, for tests that must find them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from ptxsim import Kernel, Module, compile_ptx
from python_tests.cuda.ptx_rows import SOURCES

RESIDENT_BFLOAT16 = """#include "cuda/rows_kernel.cuh"
template __global__ void trb::cuda::resident_rows<__nv_bfloat16>(const __grid_constant__ trb::cuda::KernelArgs);
"""  # alone, which takes half the time of rows_bfloat16.cu


class Planted(NamedTuple):
    """A bug, as the text of a kernel source that is taken for another."""

    name: str
    file: str  # in csrc/
    right: str
    wrong: str

    def copy_to(self, folder: Path) -> Path:
        """csrc/ with the bug."""
        sources = shutil.copytree(SOURCES.parent, folder / "csrc")
        source = sources / self.file
        text = source.read_text()
        assert text.count(self.right) == 1
        source.write_text(text.replace(self.right, self.wrong))
        return Path(sources)

    def resident_kernel(self, folder: Path) -> Kernel:
        """Of bfloat16 rows, for sm_90."""
        source = self.copy_to(folder) / "resident.cu"
        source.write_text(RESIDENT_BFLOAT16)
        (kernel,) = Module.parse(compile_ptx(source, 90)).kernels.values()
        return kernel

    def assembly_kernel(self, folder: Path) -> Kernel:
        source = self.copy_to(folder) / "cuda" / "assemble_requests.cu"
        (kernel,) = Module.parse(compile_ptx(source, 90)).kernels.values()
        return kernel
