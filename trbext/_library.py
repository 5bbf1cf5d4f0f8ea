"""Loads `libtrb_ops.so` and gives `torch.ops.trb` its fake kernels, its missing autograd and its CUDA error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import torch

from . import _C
from ._operators import dtensor as sharding
from ._operators import fake_kernels, fake_kernels_top_k
from ._operators.fake_checks import into_outputs

# Beside _C and not beside this file: in an editable install this file is in the source tree, the library is not.
LIBRARY_PATH = Path(_C.__file__).parent / "libtrb_ops.so"
OPERATORS = tuple(
    name + teacher + overload
    for teacher in ("", "_top_k")
    for name, second in (("blend", ".per_row"), ("solve", ".per_row"), ("sample", ".per_row"), ("verify", ".out"))
    for overload in ("", second)
)

torch.ops.load_library(LIBRARY_PATH)


def _no_cuda_kernels(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError(
        "trbext was built without CUDA kernels, so torch.ops.trb takes CPU tensors only, got CUDA tensors. Move them "
        "to the CPU, or install the CUDA toolkit (nvcc >= 12.4) and trbext again: "
        "TRB_CUDA=ON pip install --force-reinstall --no-deps ."
    )


for _fakes, _teacher in ((fake_kernels, ""), (fake_kernels_top_k, "_top_k")):
    for _name in ("blend", "solve", "sample"):
        for _overload in ("", ".per_row"):
            torch.library.register_fake(f"trb::{_name}{_teacher}{_overload}", getattr(_fakes, _name + _teacher))
    _verify = getattr(_fakes, f"verify{_teacher}")
    torch.library.register_fake(f"trb::verify{_teacher}", _verify)
    torch.library.register_fake(f"trb::verify{_teacher}.out", into_outputs(f"trb::verify{_teacher}", _verify))

# The loss never differentiates through the behavior policy: with no autograd kernel at all, PyTorch's fallback would
# mark the outputs of trainable logits as part of a graph that cannot be run backward.
_autograd = torch.library.Library("trb", "IMPL", "Autograd")
for _name in OPERATORS:
    _autograd.impl(_name, torch.library.fallthrough_kernel)

sharding.register_where_needed()

if not _C.cuda_compiled:
    _cuda = torch.library.Library("trb", "IMPL", "CUDA")
    for _name in OPERATORS:
        _cuda.impl(_name, _no_cuda_kernels)
