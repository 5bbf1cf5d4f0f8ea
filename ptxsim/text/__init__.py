"""Compiles CUDA to PTX text, and parses it to plain data."""
