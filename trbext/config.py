"""Keeps the configuration importable by its first public name; it is defined in `trbext.training.config`.

Checkpoints hold their arguments pickled by this name.
"""

from .training.config import TRBConfig

__all__ = ["TRBConfig"]
