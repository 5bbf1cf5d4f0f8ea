"""Plots the curves of runs from their metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ..training.metrics.metric_table import METRICS, Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The metrics of each panel, and the titles and units that are not those of its first metric.
PANELS = (
    ("trb/reverse_kl", "eval_loss"),
    ("trb/teacher_log_prob",),
    ("trb/beta_mean",),
    ("trb/epsilon", "trb/kl"),
    ("trb/teacher_entropy",),
    ("eval_pass@1",),
)
TITLES = {
    "trb/reverse_kl": "Reverse KL of student to teacher",
    "trb/epsilon": "KL budget epsilon (solid) and KL spent (dashed)",
    "eval_pass@1": "pass@1 of the student",
}
UNITS = {"trb/beta_mean": "mean, p10 to p90", "eval_pass@1": "share of samples"}
STYLES = ("-", "--")


@matplotlib.rc_context({"text.parse_math": False})  # a name may hold "$"
def plot_runs(runs: Sequence[tuple[str, Sequence[Metrics]]], output: Path, title: str | None = None) -> None:
    """Plots the curves of `runs`, pairs (name, lines of metrics.jsonl), over optimizer steps into one PNG or SVG.

    Panels without data are left out. ValueError if no run has any metric to plot.
    """
    panels = [panel for panel in PANELS if any(_series(lines, name)[0] for _, lines in runs for name in panel)]
    if not panels:
        raise ValueError(f"nothing to plot: no metrics in {', '.join(name for name, _ in runs)}")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.3 * rows), squeeze=False)
    axes = list(grid.flat)
    for axis, names in zip(axes, panels, strict=False):
        for index, (run, lines) in enumerate(runs):
            _plot_lines(axis, lines, names, run, f"C{index % 10}")
        metric = METRICS[names[0]]
        axis.set_title(TITLES.get(metric.name, metric.capitalized), fontsize=10)
        axis.set_ylabel(UNITS.get(metric.name, metric.unit), fontsize=9)
        axis.set_xlabel("optimizer step", fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.remove()
    if len(runs) > 1 or len(panels[0]) > 1:
        axes[0].legend(fontsize=8)
    if title:
        figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(output, dpi=110)
    plt.close(figure)


def _plot_lines(axis: Axes, lines: Sequence[Metrics], names: tuple[str, ...], run: str, color: str) -> None:
    for name, style in zip(names, STYLES, strict=False):
        steps, values = _series(lines, name)
        if not steps:
            continue
        label = f"{run}, held out" if name == "eval_loss" else run if name == names[0] else None
        marker = "o" if name.startswith("eval") or len(steps) < 3 else None
        axis.plot(steps, values, style, color=color, label=label, marker=marker, markersize=3, linewidth=1.4)
        if name == "trb/beta_mean":
            low, high = (dict(zip(*_series(lines, f"trb/beta_{p}"), strict=True)) for p in ("p10", "p90"))
            shared = [step for step in steps if step in low and step in high]
            axis.fill_between(shared, [low[s] for s in shared], [high[s] for s in shared], color=color, alpha=0.15)


def _series(lines: Sequence[Metrics], name: str) -> tuple[list[int], list[float]]:
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]
