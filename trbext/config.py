"""The configuration under the name it was first published by; it lives in `trbext.training.config`.

Checkpoints hold their arguments pickled by this name.
"""

from .training.config import TRBConfig

__all__ = ["TRBConfig"]
