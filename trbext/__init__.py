"""Trust-Region Behavior Blending (arXiv 2605.31159): `torch.ops.trb` and what a trainer needs around it.

`blend`, `solve`, `sample` and `verify` are documented in `trbext.ops`; `trbext.reference` is the same in plain PyTorch.
"""

from pathlib import Path as _Path

import torch as _torch  # noqa: F401  (the operators resolve their symbols in the libraries that torch has loaded)

try:
    from . import _C
except ImportError as _error:
    _here = _Path(__file__).resolve().parent
    _source_tree = (_here.parent / "csrc" / "ops.cpp").exists()
    raise ImportError(
        f"trbext's compiled module was not found in {_here}. "
        + (
            "This is the source folder, not an installed package: run `pip install .` in the repository and start "
            "Python elsewhere, or run `pip install -e . --no-build-isolation` to work from the source folder."
            if _source_tree
            else "Reinstall it: `pip install --force-reinstall --no-deps trbext`."
        )
        + f" ({_error})"
    ) from None

from . import _library  # noqa: F401  (registers the operators)
from .ops import blend, sample, solve, verify

__version__ = _C.version
__all__ = ["blend", "sample", "solve", "verify"]
