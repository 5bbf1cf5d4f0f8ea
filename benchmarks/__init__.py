"""Benchmarks of trbext, for a checkout with trbext installed; README.md says which command answers which question."""
