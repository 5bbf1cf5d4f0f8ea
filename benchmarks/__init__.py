"""Measures trbext. A benchmark needs a checkout and an installed trbext; README.md has a command for each question."""
