"""Defines the records of the benchmark of rollouts, and shows them as a table, bars and a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ..harness import plot, table
from ..harness.bars import Bar
from ..harness.machine import Machine

CAPTION = (
    "Tokens per second, medians; in brackets the ratio to lockstep in the same round. Acceptance, teacher passes: of "
    "k = 4."
)


@dataclass(frozen=True)
class RolloutRecord:
    """One method in one case."""

    pair: str
    batch: int
    epsilon: float  # nats
    method: str  # student, lockstep, k = 2, ..., auto
    tokens_per_s: float  # median
    first_tokens_per_s: float  # in the first call, in which auto measures
    over_lockstep: float  # median of its tokens/s over lockstep's of the same round
    rounds: int
    acceptance: float | None  # share of the tested drafts that were accepted
    passes_per_token: float | None  # teacher forwards of a row per token of the row

    @property
    def case(self) -> tuple[str, int, float]:
        """The pair, the batch size and the budget."""
        return self.pair, self.batch, self.epsilon


def by_case(records: Sequence[RolloutRecord]) -> dict[tuple[str, int, float], dict[str, RolloutRecord]]:
    """Returns the records by case and method."""
    found: dict[tuple[str, int, float], dict[str, RolloutRecord]] = {}
    for record in records:
        found.setdefault(record.case, {})[record.method] = record
    return found


def print_table(records: Sequence[RolloutRecord], machine: Machine, console: Console) -> None:
    """Prints a row per case, a column per method.

    Args:
        records: The measurements.
        machine: The machine.
        console: Where to print.
    """
    methods = list(dict.fromkeys(record.method for record in records))
    headings = ["pair", "batch", "epsilon", *methods, "acceptance", "passes"]
    table.print_table(console, str(machine), headings, _rows(records, methods), left=("pair",), caption=CAPTION)


def _rows(records: Sequence[RolloutRecord], methods: Sequence[str]) -> Iterator[list[str]]:
    for (pair, batch, epsilon), found in by_case(records).items():
        cells = []
        for name in methods:
            ratio = "" if name in ("student", "lockstep") else f" ({found[name].over_lockstep:.2f})"
            cells.append(f"{found[name].tokens_per_s:.1f}{ratio}")
        four = found.get("k = 4")
        shares = (four.acceptance, four.passes_per_token) if four is not None else (None, None)
        told = ("n/a" if share is None else f"{share:.3f}" for share in shares)
        yield [pair, str(batch), f"{epsilon:g}", *cells, *told]


def bars(records: Sequence[RolloutRecord]) -> list[Bar]:
    """Returns the bars that speculation must meet, as ratios to lockstep of the same case."""
    cases = by_case(records)

    def gain(found: dict[str, RolloutRecord]) -> float:
        return found["auto"].over_lockstep

    big = [
        gain(found)
        for (pair, batch, eps), found in cases.items()
        if pair.startswith("random") and (batch, eps) == (1, 0.05)
    ]
    passes = [
        found["k = 4"].passes_per_token for (_, _, eps), found in cases.items() if eps == 0.01 and "k = 4" in found
    ]
    best = [
        gain(found) / max(record.over_lockstep for name, record in found.items() if name not in ("student", "auto"))
        for found in cases.values()
    ]
    return [
        Bar("auto / lockstep, batch 1, epsilon 0.05, teacher 10x the student", min(big, default=None), True, 1.7),
        Bar("auto / lockstep, the worst case", min(map(gain, cases.values()), default=None), True, 0.97),
        Bar("auto / the best of lockstep and fixed k, the worst case", min(best, default=None), True, 0.9),
        Bar(
            "teacher forwards per token at epsilon 0.01, k = 4, the worst case",
            max((value for value in passes if value is not None), default=None),
            False,
            1 / 3.5,
        ),
    ]


def write_plot(records: Sequence[RolloutRecord], machine: Machine, path: Path) -> None:
    """Plots the ratio to lockstep over the budget: a panel per pair and batch, a line per method.

    Args:
        records: The measurements.
        machine: The machine.
        path: The image to write.
    """
    cases = by_case(records)
    panels = []
    for pair, batch in dict.fromkeys((pair, batch) for pair, batch, _ in cases):
        mine = {eps: found for (p, b, eps), found in cases.items() if (p, b) == (pair, batch)}
        names = [name for name in next(iter(mine.values())) if name not in ("student", "lockstep")]
        lines = [
            plot.Line(
                name,
                [(eps, found[name].over_lockstep) for eps, found in mine.items()],
                {"color": "black", "linewidth": 2.0} if name == "auto" else {"linewidth": 1.0},
            )
            for name in names
        ]
        panels.append(plot.Panel(f"{pair}, batch {batch}", lines))
    plot.plot_panels(
        path,
        [panels],
        title=str(machine),
        x_label="epsilon, nats",
        y_label="tokens per second / lockstep's",
        log_y=False,
        level=1.0,
    )
