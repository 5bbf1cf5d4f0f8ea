"""Keeps the trainer importable by its first public name; it is defined in `trbext.training.trainer`."""

from .training.trainer import TRBTrainer

__all__ = ["TRBTrainer"]
