"""What `trb info` prints: versions, the build, and where things were found."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from . import _C, __version__
from ._library import LIBRARY_PATH

COMPANIONS = ("trl", "transformers", "accelerate", "peft", "vllm", "numpy")


def build_info() -> dict[str, str]:
    """Names and values, in the order they are shown."""
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
        **{name: _version(name) for name in COMPANIONS},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
