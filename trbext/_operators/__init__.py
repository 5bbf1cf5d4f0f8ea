"""Checks the arguments of the operators, and gives them fake kernels and shardings."""
