"""Benchmarks of trbext, run in a checkout with trbext installed: `python -m benchmarks.operators.blend`."""
