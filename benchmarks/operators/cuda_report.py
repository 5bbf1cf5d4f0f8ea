"""Shows the records of the benchmark of the operators on a GPU as a table and a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from ..harness import plot, table
from .cuda_results import METHODS, OPERATORS, TOP_K, CudaMachine, CudaRecord

RATED = (*OPERATORS, TOP_K)  # beside a copy
CAPTION = (
    "Microseconds per call by CUDA events, medians; up to 0.1 ms of host time per call is hidden. cold: 5 L2 caches' "
    "worth of other data was read before each call; warm: the same call ran just before. graph: a replayed CUDA graph. "
    "% copy: rate of the bytes that must be moved (inputs read once, outputs written once) over the measured rate of "
    "a copy on the device. Newton, bisection: eager, preallocated, 10 iterations or 16 evaluations."
)


def print_table(records: Sequence[CudaRecord], machine: CudaMachine, console: Console) -> None:
    """Prints a row per case, cache and launch, a column per method.

    Args:
        records: The measurements.
        machine: The GPU.
        console: Where to print.
    """
    methods = [name for name in METHODS if any(record.method == name for record in records)]
    headings = ["V", "N", "dtype", "cache", "launch", "sweeps", "solve GB/s"]
    for name in methods:
        headings += [name, "% copy"] if name in RATED else [name]
    left = ("dtype", "cache", "launch")
    table.print_table(console, str(machine), headings, _rows(records, methods), left=left, caption=CAPTION)
    for note in dict.fromkeys(f"V {r.vocab}, N {r.rows}, {r.dtype}, {r.method}: {r.note}" for r in records if r.note):
        console.print(note, highlight=False)


def _rows(records: Sequence[CudaRecord], methods: Sequence[str]) -> Iterator[list[str]]:
    for line in dict.fromkeys((r.vocab, r.rows, r.dtype, r.cache, r.launch) for r in records):
        found = {r.method: r for r in records if (r.vocab, r.rows, r.dtype, r.cache, r.launch) == line}
        cells, solve = ["", ""], found.get("solve")
        if solve is not None:
            sweeps = "" if solve.sweeps_mean is None else f"{solve.sweeps_mean:.2f}, {solve.sweeps_max}"
            cells = [sweeps, "-" if solve.gb_per_s is None else f"{solve.gb_per_s:.0f}"]
        for name in methods:
            record = found.get(name)
            cells.append("" if record is None else _microseconds(record.median_s))
            if name in RATED:
                percent = None if record is None else record.copy_percent
                cells.append("" if percent is None else f"{percent:.1f}")
        yield [*map(str, line), *cells]


def write_plot(records: Sequence[CudaRecord], machine: CudaMachine, path: Path) -> None:
    """Plots percent of the copy over N from cold caches: a panel for each V and dtype, a line per method and launch.

    Args:
        records: The measurements.
        machine: The GPU.
        path: The image to write.
    """
    panels = [
        [
            plot.Panel(f"V = {vocab}, {dtype}", list(_lines(records, vocab, dtype)))
            for vocab in sorted({record.vocab for record in records})
        ]
        for dtype in dict.fromkeys(record.dtype for record in records)
    ]
    plot.plot_panels(
        path, panels, title=f"Cold caches. {machine}", x_label="N", y_label="% of a device copy", level=100
    )


def _lines(records: Sequence[CudaRecord], vocab: int, dtype: str) -> Iterator[plot.Line]:
    for index, name in enumerate(METHODS):
        for launch, dashes in (("call", "-" if name in RATED else "--"), ("graph", ":")):
            wanted = ("cold", vocab, dtype, name, launch)
            points = sorted(
                (r.rows, r.copy_percent)
                for r in records
                if (r.cache, r.vocab, r.dtype, r.method, r.launch) == wanted and r.copy_percent is not None
            )
            label = name if launch == "call" else f"{name}, graph"
            yield plot.Line(label, points, {"linestyle": dashes, "color": f"C{index}"})


def _microseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    value = seconds * 1e6
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
