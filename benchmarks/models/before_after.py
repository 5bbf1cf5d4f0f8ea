"""Prints what the kernels' last changes gain by the model: `python -m benchmarks.models.before_after`.

Before, a row of any N had the usual number of blocks, of at most eight, and a row of 262,144 float32 logits was
streamed, which is not modeled. Both sides have the same model (benchmarks/models/cuda_model.py) and the same
assumptions about the GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace

from ..harness.machine import wide_console
from ..harness.table import print_table
from .cuda_architectures import ARCHITECTURES, PORTABLE_CLUSTER, Architecture
from .cuda_counts import MEASURED, MEASURED_SM_100, Chip, Counts, Loop, counts_of
from .cuda_model import Kernel, predict
from .cuda_prediction import TITLE
from .cuda_shapes import shape_of, usual_shape

SWEEPS = 2.0  # of a row whose budget binds
ROWS, VOCABS = (1, 8, 64, 256, 4096), (32_768, 131_072, 151_936, 262_144)
# Instructions of the load per pair, by architecture and bytes of a logit, before and after
# (python -m python_tests.cuda.sass_tables).
LOADS = {("90", 2): (3.03, 2.91), ("90", 4): (8.38, 8.25), ("100", 2): (2.62, 2.62), ("100", 4): (5.25, 5.25)}
BEFORE = Counts(
    load=Loop(3.06),
    first=Loop(18.88, mufu=2, fp32=13),
    direct=Loop(14.88, mufu=1, fp32=10),
    decision_cycles=1620.0,
    row_cycles=1371.0,
    row_instructions=7010.0,
)
# For float32 logits, of which a lane has four in a chunk, not eight.
BEFORE_FLOAT32 = replace(BEFORE, first=Loop(18.75, mufu=2, fp32=13), direct=Loop(16.5, mufu=1, fp32=11))
AFTER_FLOAT32 = {
    "90": replace(MEASURED, first=Loop(17.25, mufu=2, fp32=13), direct=Loop(15.25, mufu=1, fp32=11)),
    "100": replace(MEASURED_SM_100, first=Loop(12.0, mufu=2, fp32=13), direct=Loop(9.75, mufu=1, fp32=11)),
}


def times(
    gpu: Architecture, vocab: int, element_bytes: int, rows: int, chip: Chip
) -> tuple[float | None, float | None]:
    """Returns the microseconds of a call before and after, None for a row that was streamed.

    Args:
        gpu: The GPU.
        vocab: Tokens per row.
        element_bytes: Of a logit.
        rows: Rows of the call.
        chip: Costs of the GPU.
    """
    loads = LOADS[gpu.capability, element_bytes]
    after = counts_of(gpu.capability) if element_bytes == 2 else AFTER_FLOAT32[gpu.capability]
    sides = (
        (BEFORE if element_bytes == 2 else BEFORE_FLOAT32, usual_shape(gpu, vocab, element_bytes)),
        (after, shape_of(gpu, vocab, element_bytes, rows)),
    )
    found: list[float | None] = []
    for i, (counts, shape) in enumerate(sides):
        if shape is None or (i == 0 and shape.cluster > PORTABLE_CLUSTER):
            found.append(None)
            continue
        counted = replace(counts, load=Loop(loads[i]))
        kernel = Kernel(counted, SWEEPS, False, shape.cluster, shape.ctas_per_sm, element_bytes, True, chip)
        found.append(predict(gpu, kernel, vocab, rows).time_us)
    return found[0], found[1]


def cells(efficiency: float) -> Iterator[list[str]]:
    """Returns the rows of the table: a GPU, a vocabulary, a dtype, and both times for each N."""
    chip = Chip(issue_efficiency=(efficiency, efficiency))
    for gpu in (ARCHITECTURES["H100"], ARCHITECTURES["B200"]):
        for dtype, element_bytes in (("bfloat16", 2), ("float32", 4)):
            for vocab in VOCABS:
                both = [times(gpu, vocab, element_bytes, rows, chip) for rows in ROWS]
                roofline = ROWS[-1] * 2 * vocab * element_bytes / gpu.memory_gb_per_s / 1e3
                shares = " -> ".join(
                    "streamed" if time is None else f"{100 * roofline / time:.0f} %" for time in both[-1]
                )
                shown = [" -> ".join("streamed" if time is None else _of(time) for time in pair) for pair in both]
                yield [gpu.name, f"{vocab:,}", dtype, *shown, shares]


def _of(time: float) -> str:
    return f"{time:.1f}" if time < 100 else f"{time:.0f}"


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models.before_after", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument(
        "--issue-efficiency", type=float, default=0.75, help="part of the issue slots that a sweep fills"
    )
    options = parser.parse_args(arguments)
    if not 0.0 < options.issue_efficiency <= 1.0:
        print(
            "benchmarks.models.before_after: --issue-efficiency must be above 0 and at most 1, got "
            f"{options.issue_efficiency}",
            file=sys.stderr,
        )
        return 2
    headings = ("GPU", "V", "dtype", *(f"N = {rows}" for rows in ROWS), f"of a copy, N = {ROWS[-1]}")
    title = f"{TITLE}: microseconds of solve, two sweeps, issue efficiency {options.issue_efficiency:g}"
    console = wide_console(200)
    print_table(console, title, headings, list(cells(options.issue_efficiency)), left=("GPU", "dtype"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
