"""The table and the plot of `python -m benchmarks.operators.blend_cuda`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from rich.console import Console
from rich.table import Table

from .cuda_results import METHODS, OPERATORS, CudaMachine, CudaRecord

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CAPTION = (
    "Microseconds a call by CUDA events, medians; up to 0.1 ms of host time a call is hidden. cold: 5 L2 caches' worth "
    "of other data was read before each call; warm: the same call ran just before. graph: a replayed CUDA graph. "
    "% copy: rate of the bytes that must be moved (inputs read once, outputs written once) over the measured rate of "
    "a copy on the device. Newton, bisection: eager, preallocated, 10 iterations or 16 evaluations."
)


def print_table(records: Sequence[CudaRecord], machine: CudaMachine, console: Console) -> None:
    methods = [name for name in METHODS if any(record.method == name for record in records)]
    table = Table(title=str(machine), caption=CAPTION, caption_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("V", "N", "dtype", "cache", "launch", "sweeps", "solve GB/s"):
        table.add_column(heading, justify="left" if heading in ("dtype", "cache", "launch") else "right")
    for name in methods:
        table.add_column(name, justify="right")
        if name in OPERATORS:
            table.add_column("% copy", justify="right")
    lines = list(dict.fromkeys((r.vocab, r.rows, r.dtype, r.cache, r.launch) for r in records))
    for line in lines:
        found = {r.method: r for r in records if (r.vocab, r.rows, r.dtype, r.cache, r.launch) == line}
        solve = found.get("solve")
        cells = ["", ""]
        if solve is not None:
            sweeps = "" if solve.sweeps_mean is None else f"{solve.sweeps_mean:.2f}, {solve.sweeps_max}"
            cells = [sweeps, "-" if solve.gb_per_s is None else f"{solve.gb_per_s:.0f}"]
        for name in methods:
            record = found.get(name)
            cells.append("" if record is None else _microseconds(record.median_s))
            if name in OPERATORS:
                percent = None if record is None else record.copy_percent
                cells.append("" if percent is None else f"{percent:.1f}")
        vocab, rows, dtype, cache, launch = line
        table.add_row(str(vocab), str(rows), dtype, cache, launch, *cells)
    console.print(table)
    for note in dict.fromkeys(f"V {r.vocab}, N {r.rows}, {r.dtype}, {r.method}: {r.note}" for r in records if r.note):
        console.print(note, highlight=False)


def plot(records: Sequence[CudaRecord], machine: CudaMachine, path: Path) -> None:
    """From cold caches: percent of the copy over N, a panel for each V and dtype, one line per method and launch."""
    cold = [record for record in records if record.cache == "cold" and record.copy_percent is not None]
    vocabs, dtypes = sorted({r.vocab for r in records}), list(dict.fromkeys(r.dtype for r in records))
    figure, grid = plt.subplots(
        len(dtypes), len(vocabs), figsize=(2 + 3.2 * len(vocabs), 1.2 + 3 * len(dtypes)), squeeze=False, sharey=True
    )
    for axes, dtype in zip(grid, dtypes, strict=True):
        for axis, vocab in zip(axes, vocabs, strict=True):
            for index, name in enumerate(METHODS):
                for launch, style in (("call", "-" if name in OPERATORS else "--"), ("graph", ":")):
                    points = sorted(
                        (r.rows, r.copy_percent)
                        for r in cold
                        if (r.vocab, r.dtype, r.method, r.launch) == (vocab, dtype, name, launch)
                    )
                    if points:
                        label = name if launch == "call" else f"{name}, graph"
                        axis.plot(
                            *zip(*points, strict=True), style, marker="o", markersize=3, color=f"C{index}", label=label
                        )
            axis.axhline(100, color="black", linewidth=0.8)
            axis.set(xscale="log", yscale="log", title=f"V = {vocab}, {dtype}", xlabel="N")
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("% of a device copy")
    lines = {label: line for axis in grid.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.suptitle(f"Cold caches. {machine}", fontsize=7)
    figure.tight_layout(rect=(0, 0, 1 - 1.9 / figure.get_figwidth(), 1))
    figure.legend(lines.values(), lines.keys(), loc="center right", fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _microseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    value = seconds * 1e6
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
