"""Finds nvcc and nvdisasm: on PATH, in a CUDA installation, or in the wheels of PyPI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")


def find_nvcc() -> Path | None:
    """Returns the compiler driver: of a CUDA installation, or of the PyPI package nvidia-cuda-nvcc."""
    return find_tool("nvcc")


def find_nvdisasm() -> Path | None:
    """Returns the disassembler: of a CUDA installation, or of the PyPI package nvidia-cuda-nvdisasm."""
    return find_tool("nvdisasm")


@cache
def supported() -> tuple[str, ...]:
    """Returns those of ARCHITECTURES that this nvcc knows (12.4 knows the first two, 12.8 and later all); none without
    nvcc."""
    nvcc = find_nvcc()
    if nvcc is None:
        return ()
    listed = subprocess.run([str(nvcc), "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    return tuple(architecture for architecture in ARCHITECTURES if architecture in listed)


def missing_tool() -> str | None:
    """Returns the reason that code can be neither compiled nor disassembled here, for a test to skip with; None if it
    can."""
    for name, found in (("nvcc", find_nvcc()), ("nvdisasm", find_nvdisasm())):
        if found is None:
            return (
                f"{name} is neither on PATH, nor in $CUDA_HOME/bin or /usr/local/cuda/bin, nor installed from PyPI "
                f"(pip install nvidia-cuda-{name})"
            )
    return None


def find_tool(name: str) -> Path | None:
    """Returns a program of the CUDA toolkit."""
    on_path = shutil.which(name)
    if on_path:
        return Path(on_path)
    return next((folder / name for folder in _folders() if os.access(folder / name, os.X_OK)), None)


def _folders() -> Iterator[Path]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable]) / "bin"
    yield Path("/usr/local/cuda/bin")
    nvidia = Path(sysconfig.get_path("purelib")) / "nvidia"
    yield from sorted(nvidia.glob("cu*/bin"), reverse=True)  # CUDA 13: nvidia/cu13/bin; the newest first
    yield from sorted(nvidia.glob("cuda_*/bin"))  # CUDA 12: one folder per package
