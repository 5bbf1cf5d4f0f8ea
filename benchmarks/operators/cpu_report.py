"""Shows the records of the benchmark of the operators on a CPU as a table and a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from ..harness import plot, table
from ..harness.machine import Machine
from .cpu_results import FLOORS, METHODS, OPERATORS, Case, Record

WIDTH = 190  # columns, if the output is no terminal
CAPTION = (
    "Microseconds per row, medians of calls interleaved in one process, each after an untimed read of the inputs. "
    "read: both inputs once, all threads. fill: the output of blend, zeroed in place; new fill: in a fresh tensor, as "
    "blend returns one. 2 log_softmax: in the inputs' dtype, fresh outputs. Newton, bisection: eager, preallocated; "
    "10 iterations, 16 or 50 evaluations; Newton stop: until all rows converged. brentq: float64, two rows, scaled. "
    "One number for both budgets: the time does not depend on it."
)


def print_table(records: Sequence[Record], machine: Machine, console: Console) -> None:
    """Prints a row per case and budget, a column per method.

    Args:
        records: The measurements.
        machine: The machine.
        console: Where to print.
    """
    methods = [name for name in METHODS if any(record.method == name for record in records)]
    left = ("inputs", "dtype", "budget")
    headings = ["inputs", "V", "N", "dtype", "budget", "sweeps", "read\nGB/s", *(m.replace(" ", "\n") for m in methods)]
    table.print_table(console, str(machine), headings, _rows(records, methods), left=left, caption=CAPTION)
    for record in records:
        if record.note:
            console.print(f"V {record.vocab}, N {record.rows}, {record.dtype}, {record.method}: {record.note}")


def _rows(records: Sequence[Record], methods: Sequence[str]) -> Iterator[list[str] | None]:
    cases = list(dict.fromkeys(record.case for record in records))
    for case in cases:
        budgets = list(dict.fromkeys(r.budget for r in records if r.case == case and r.budget != "any"))
        for budget in budgets:
            # Numbers that do not depend on the budget are in the first row of a case only.
            first = budget == budgets[0]
            found = {r.method: r for r in records if r.case == case and r.budget in (budget, "any")}
            solve, rate = found["solve"], found["read"].gb_per_s
            yield [
                *((case.inputs, str(case.vocab), str(case.rows), case.dtype) if first else ("", "", "", "")),
                budget,
                f"{solve.sweeps_mean:.2f}, {solve.sweeps_max}",
                f"{rate:.0f}" if first and rate else "",
                *(
                    _number(found[name].us_per_row) if name in found and (first or found[name].budget != "any") else ""
                    for name in methods
                ),
            ]
        if case.rows == max(c.rows for c in cases):
            yield None


def write_plot(records: Sequence[Record], machine: Machine, path: Path) -> None:
    """Plots time per row over V at the binding budget: a panel for each N and dtype, a line per method.

    Args:
        records: The measurements.
        machine: The machine.
        path: The image to write.
    """
    cases = [record.case for record in records if record.case.inputs == "synthetic"]
    panels = [
        [
            plot.Panel(
                f"N = {rows}, {dtype}",
                [_line(records, index, name, rows, dtype) for index, name in enumerate(METHODS)],
            )
            for rows in sorted({case.rows for case in cases})
        ]
        for dtype in dict.fromkeys(case.dtype for case in cases)
    ]
    plot.plot_panels(
        path,
        panels,
        title=f"Binding budget. {machine}",
        x_label="V",
        y_label="µs / row",
        x_ticks=sorted({case.vocab for case in cases}),
    )


def _line(records: Sequence[Record], index: int, name: str, rows: int, dtype: str) -> plot.Line:
    points = sorted(
        (record.vocab, record.us_per_row)
        for record in records
        if record.case == Case("synthetic", record.vocab, rows, dtype)
        and (record.method, record.budget) in ((name, "binding"), (name, "any"))
        and record.us_per_row is not None
    )
    dashes = "-" if name in OPERATORS else ":" if name in FLOORS else "--"
    return plot.Line(name, points, {"linestyle": dashes, "color": f"C{index % 10}"})


def _number(value: float | None) -> str:
    """Formats three significant digits without an exponent."""
    return (
        "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    )
