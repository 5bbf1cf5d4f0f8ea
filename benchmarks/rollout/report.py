"""The table, the bars and the plot of `python -m benchmarks.rollout.compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from rich.console import Console
from rich.table import Table

from ..harness.bars import Bar
from ..harness.results import Machine

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class RolloutRecord:
    """One method in one case."""

    pair: str
    batch: int
    epsilon: float  # nats
    method: str  # student, lockstep, k = 2, ..., auto
    tokens_per_s: float  # median
    first_tokens_per_s: float  # of the first call, in which auto measures
    over_lockstep: float  # median of its tokens/s over lockstep's of the same round
    rounds: int
    acceptance: float | None  # share of the tested drafts that stood
    passes_per_token: float | None  # teacher forwards of a row per token it wrote

    @property
    def case(self) -> tuple[str, int, float]:
        return self.pair, self.batch, self.epsilon


def by_case(records: Sequence[RolloutRecord]) -> dict[tuple[str, int, float], dict[str, RolloutRecord]]:
    found: dict[tuple[str, int, float], dict[str, RolloutRecord]] = {}
    for record in records:
        found.setdefault(record.case, {})[record.method] = record
    return found


def print_table(records: Sequence[RolloutRecord], machine: Machine, console: Console) -> None:
    methods = list(dict.fromkeys(record.method for record in records))
    table = Table(
        title=str(machine),
        caption="Tokens a second, medians; in brackets of the ratio to lockstep in the same round. Acceptance, teacher "
        "passes: of k = 4.",
        caption_justify="left",
    )
    for heading in ("pair", "batch", "epsilon", *methods, "acceptance", "passes"):
        table.add_column(heading, justify="left" if heading == "pair" else "right")
    for (pair, batch, epsilon), found in by_case(records).items():
        cells = []
        for name in methods:
            ratio = "" if name in ("student", "lockstep") else f" ({found[name].over_lockstep:.2f})"
            cells.append(f"{found[name].tokens_per_s:.1f}{ratio}")
        four = found.get("k = 4")
        shares = (four.acceptance, four.passes_per_token) if four is not None else (None, None)
        told = ("n/a" if share is None else f"{share:.3f}" for share in shares)
        table.add_row(pair, str(batch), f"{epsilon:g}", *cells, *told)
    console.print(table)


def bars(records: Sequence[RolloutRecord]) -> list[Bar]:
    """What speculation is held to, as ratios to lockstep of the same case."""
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


def plot(records: Sequence[RolloutRecord], machine: Machine, path: Path) -> None:
    """Ratio to lockstep over the budget: one panel per pair and batch."""
    cases = by_case(records)
    panels = list(dict.fromkeys((pair, batch) for pair, batch, _ in cases))
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.4), sharey=True, squeeze=False)
    for axis, (pair, batch) in zip(axes[0], panels, strict=True):
        mine = {eps: found for (p, b, eps), found in cases.items() if (p, b) == (pair, batch)}
        for name in next(iter(mine.values())):
            if name in ("student", "lockstep"):
                continue
            ratios = [found[name].over_lockstep for found in mine.values()]
            style = {"color": "black", "linewidth": 2.0} if name == "auto" else {"linewidth": 1.0}
            axis.plot(list(mine), ratios, marker="o", markersize=3, label=name, **style)
        axis.axhline(1.0, color="grey", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xlabel("epsilon, nats")
        axis.set_title(f"{pair}, batch {batch}", fontsize=9)
    axes[0][0].set_ylabel("tokens a second / lockstep's")
    axes[0][0].legend(fontsize=7)
    figure.suptitle(str(machine), fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
