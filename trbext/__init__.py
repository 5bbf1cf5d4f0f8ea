"""Trust-Region Behavior Blending (arXiv 2605.31159): `torch.ops.trb` and what a trainer needs around it.

`blend`, `solve`, `sample` and `verify` are documented in `trbext.ops`; `trbext.reference` is the same in plain PyTorch.
"""

from pathlib import Path as _Path

import torch as _torch  # noqa: F401  (the operators resolve their symbols in the libraries that torch has loaded)

from ._installed_build import check_sources as _check_sources
from ._installed_build import load_compiled_module as _load_compiled_module

try:
    from . import _C
except ImportError as _error:
    try:
        _C = _load_compiled_module(_Path(__file__).resolve().parent, _error)
    except ImportError as _remedy:
        raise _remedy from None  # one message, not a chain of two
else:
    _check_sources(_Path(__file__).resolve().parent, _C)

from . import _library  # noqa: F401  (registers the operators)
from .ops import blend, sample, solve, verify

__version__ = _C.version
__all__ = ["blend", "sample", "solve", "verify"]
