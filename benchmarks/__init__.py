"""Benchmarks of trbext, run from the root of a checkout with trbext installed: `python -m benchmarks.blend`."""
