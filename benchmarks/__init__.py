"""Benchmarks of trbext. They need a checkout and an installed trbext; README.md lists a command for each question."""
