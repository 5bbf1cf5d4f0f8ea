"""The first run of the CUDA kernels on a GPU, in stages: `bash benchmarks/first_light.sh`.

The script runs the stages, each with its own time limit; the modules here are those written in Python, one a stage.
All need torch, numpy and trbext alone, and take `--device cpu` to be tried without a GPU.
"""
