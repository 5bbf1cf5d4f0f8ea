"""Plants bugs in the CUDA sources, for tests that must find them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from ptxsim import Kernel, Module, compile_ptx
from python_tests.cuda.ptx_rows import SOURCES, row_kernel_of


class Planted(NamedTuple):
    """A bug: a text of a kernel source and the text that replaces it."""

    name: str
    file: str  # in csrc/
    right: str
    wrong: str

    def copy_to(self, folder: Path) -> Path:
        """Copies csrc/ with the bug."""
        sources = shutil.copytree(SOURCES.parent, folder / "csrc")
        source = sources / self.file
        text = source.read_text()
        if text.count(self.right) != 1:  # not an assertion, which would pass for a test that has noticed something
            raise ValueError(f"csrc/{self.file} must hold the planted text once, got {text.count(self.right)} times")
        source.write_text(text.replace(self.right, self.wrong))
        return Path(sources)

    def resident_kernel(self, folder: Path) -> Kernel:
        """Compiles the resident kernel for bfloat16 rows and sm_90."""
        return row_kernel_of(self.copy_to(folder), folder, 90, torch.bfloat16, "resident")

    def assembly_kernel(self, folder: Path) -> Kernel:
        source = self.copy_to(folder) / "cuda" / "assemble_requests.cu"
        (kernel,) = Module.parse(compile_ptx(source, 90)).kernels.values()
        return kernel
