"""The table and the plot of `python -m benchmarks.operators.blend`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from rich.console import Console
from rich.table import Table

from .results import FLOORS, METHODS, OPERATORS, Case, Machine, Record

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WIDTH = 190  # columns, where the output is no terminal
CAPTION = (
    "Microseconds per row, medians of calls interleaved in one process, each after an untimed read of the inputs. "
    "read: both inputs once, all threads. fill: the output of blend, zeroed in place; new fill: in a fresh tensor, as "
    "blend returns one. 2 log_softmax: in the inputs' dtype, fresh outputs. Newton, bisection: eager, preallocated; "
    "10 iterations, 16 or 50 evaluations; Newton stop: until all rows converged. brentq: float64, two rows, scaled. "
    "One number for both budgets: the time does not depend on it."
)


def print_table(records: Sequence[Record], machine: Machine, console: Console) -> None:
    methods = [name for name in METHODS if any(record.method == name for record in records)]
    table = Table(title=str(machine), caption=CAPTION, caption_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("inputs", "V", "N", "dtype", "budget", "sweeps", "read GB/s", *methods):
        table.add_column(
            heading.replace(" ", "\n"), justify="left" if heading in ("inputs", "dtype", "budget") else "right"
        )
    cases = list(dict.fromkeys(record.case for record in records))
    for case in cases:
        budgets = list(dict.fromkeys(r.budget for r in records if r.case == case and r.budget != "any"))
        for budget in budgets:
            found = {r.method: r for r in records if r.case == case and r.budget in (budget, "any")}
            first = budget == budgets[0]
            solve = found["solve"]
            cells = [
                _number(found[name].us_per_row) if name in found and (first or found[name].budget != "any") else ""
                for name in methods
            ]
            rate = found["read"].gb_per_s
            table.add_row(
                *((case.inputs, str(case.vocab), str(case.rows), case.dtype) if first else ("", "", "", "")),
                budget,
                f"{solve.sweeps_mean:.2f}, {solve.sweeps_max}",
                f"{rate:.0f}" if first and rate else "",
                *cells,
                end_section=budget == budgets[-1] and case.rows == max(c.rows for c in cases),
            )
    console.print(table)
    for record in records:
        if record.note:
            console.print(f"V {record.vocab}, N {record.rows}, {record.dtype}, {record.method}: {record.note}")


def plot(records: Sequence[Record], machine: Machine, path: Path) -> None:
    """Time per row over V at the binding budget, a panel for each N and dtype, one line per method."""
    cases = [record.case for record in records if record.case.inputs == "synthetic"]
    rows, dtypes = sorted({case.rows for case in cases}), list(dict.fromkeys(case.dtype for case in cases))
    figure, grid = plt.subplots(
        len(dtypes), len(rows), figsize=(1.5 + 3.3 * len(rows), 1.2 + 3.4 * len(dtypes)), squeeze=False, sharey=True
    )
    for axes, dtype in zip(grid, dtypes, strict=True):
        for axis, count in zip(axes, rows, strict=True):
            for index, name in enumerate(METHODS):
                points = sorted(
                    (record.vocab, record.us_per_row)
                    for record in records
                    if record.case == Case("synthetic", record.vocab, count, dtype)
                    and (record.method, record.budget) in ((name, "binding"), (name, "any"))
                    and record.us_per_row is not None
                )
                if points:
                    style = "-" if name in OPERATORS else ":" if name in FLOORS else "--"
                    axis.plot(
                        *zip(*points, strict=True), style, marker="o", markersize=3, color=f"C{index % 10}", label=name
                    )
            axis.set(xscale="log", yscale="log", title=f"N = {count}, {dtype}", xlabel="V")
            ticks = sorted({case.vocab for case in cases})
            axis.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("µs / row")
    lines = {label: line for axis in grid.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.suptitle(f"Binding budget. {machine}", fontsize=8)
    figure.tight_layout(rect=(0, 0, 1 - 1.4 / figure.get_figwidth(), 1))
    figure.legend(lines.values(), lines.keys(), loc="center right", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _number(value: float | None) -> str:
    """Three significant digits, no exponent."""
    return (
        "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    )
