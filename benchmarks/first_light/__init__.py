"""Runs the CUDA kernels on a GPU for the first time, in stages: `bash benchmarks/first_light.sh`.

The script runs the stages, each with its own time limit; the modules here are the stages in Python, one per module.
They need only torch, numpy and trbext, and take `--device cpu` to be tried without a GPU.
"""
