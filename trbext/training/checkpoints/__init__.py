"""Checks checkpoints, and continues a run from one exactly."""
