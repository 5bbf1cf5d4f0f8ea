"""Measures pass@k of a model by verifiers: `trb eval`."""
