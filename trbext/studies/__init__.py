"""Compares runs and rollouts: `trb compare`, `trb probe` and `trb demo`."""
