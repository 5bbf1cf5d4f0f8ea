"""The trainer under the name it was first published by; it lives in `trbext.training.trainer`."""

from .training.trainer import TRBTrainer

__all__ = ["TRBTrainer"]
