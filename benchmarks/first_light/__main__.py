"""Runs a stage of `benchmarks/first_light.sh`: `python -m benchmarks.first_light STAGE`.

smoke checks the operators against float64, time times them, launches runs five kernels for a profiler, and decisions
prints one line of JSON for `time`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import trbext

from . import launches, smoke, timings


def where(device: str) -> str:
    """Returns the head of each stage: the build, the device and torch."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else "the CPU"
    built = trbext._C.cuda_archs if trbext._C.cuda_compiled else "no CUDA kernels"
    return f"trbext {trbext.__version__} ({built}) on {gpu}, torch {torch.__version__}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the words after `python -m benchmarks.first_light`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_light", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("stage", choices=("smoke", "time", "decisions", "launches"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/first_light"), metavar="DIR",
                        help="folder of chip.json, which `time` adds to; default: %(default)s")  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the stage that the command line names, and returns its exit code."""
    options = parse(arguments)
    if options.device == "cuda" and not (torch.cuda.is_available() and trbext._C.cuda_compiled):
        missing = "no CUDA device" if not torch.cuda.is_available() else "this build of trbext has no CUDA kernels"
        print(f"benchmarks.first_light: {missing}", file=sys.stderr)
        return 2
    if options.stage == "decisions":
        print(json.dumps(timings.decisions(options.device)))
        return 0
    print(where(options.device) + "\n", flush=True)
    if options.stage == "smoke":
        return 0 if smoke.check(options.device) else 1
    if options.stage == "launches":
        launches.run(options.device)
        return 0
    timings.report(options.device, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
