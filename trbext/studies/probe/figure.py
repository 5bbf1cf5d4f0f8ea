"""Plots the figure of a probe: success by prefix length, and the models' log-probabilities by budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


def name_of(epsilon: float) -> str:
    """Returns the name of a budget in figures and tables."""
    return "OPD" if epsilon == 0 else f"TRB epsilon={epsilon:g}"


def plot_probe(found: dict[str, Any], stem: Path) -> None:
    """Plots what probe.json holds.

    Args:
        found: The contents of the JSON.
        stem: The figure is written to `stem`.png and `stem`.svg.
    """
    # 1. Two panels have the success of prefixes by their length, one for each model that continues.
    figure = Figure(figsize=(13.5, 7), layout="constrained")
    axes = figure.subplots(2, 3)
    epsilons = [rollouts["epsilon"] for rollouts in found["rollouts"]]
    for axis, by in zip(axes[0, :2], ("teacher", "student"), strict=True):
        for index, epsilon in enumerate(epsilons):
            points = [c for c in found["continuations"] if c["by"] == by and c["epsilon"] == epsilon]
            # Side by side, or the bars of one budget would hide those of another.
            offset = 0.004 * (index - (len(epsilons) - 1) / 2) * found["max_completion_length"]
            x = [point["length"] + offset for point in points]
            _bars(axis, x, [point["success"] for point in points], COLORS[index % len(COLORS)], name_of(epsilon), "-")
        axis.set_title(f"Prefix of t tokens, continued by the {by}", fontsize=10, loc="left")
        axis.set_xlabel("t")
        axis.set_ylabel("success")
        axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes[0, 0].legend(fontsize=8)
    # 2. Four panels have one number of whole rollouts each.
    panels = (
        (axes[0, 2], "reward", "Success of whole rollouts", "share"),
        (axes[1, 0], "teacher_log_prob", "Teacher log-prob of rollouts", "nats/token"),
        (axes[1, 1], "support_score", "Support score: mean log pi_T - log pi_S", "nats/token"),
        (axes[1, 2], "auroc", "AUROC of the support score for success", "0.5: tells nothing"),
    )
    for axis, key, title, unit in panels:
        values = [rollouts[key] for rollouts in found["rollouts"]]
        for place, value in enumerate(values):
            _bars(axis, [place], [value], COLORS[place % len(COLORS)], "", "")
        axis.set_xticks(range(len(epsilons)), [name_of(epsilon).replace("TRB epsilon=", "") for epsilon in epsilons])
        axis.set_xlim(-0.5, len(epsilons) - 0.5)
        axis.set_xlabel("epsilon, nats/token")
        axis.set_ylabel(unit)
        axis.set_title(title, fontsize=10, loc="left")
    # 3. The figure is written twice.
    axes[1, 2].axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "probe"}):
        figure.savefig(stem.with_suffix(".png"), dpi=110)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})


def _bars(
    axis: Axes, x: list[float], values: list[dict[str, float | None]], color: str, label: str, style: str
) -> None:
    points = [(at, value["value"]) for at, value in zip(x, values, strict=True) if value["value"] is not None]
    axis.plot([at for at, _ in points], [value for _, value in points], f"{style}o", color=color, label=label, ms=4)
    for at, value in zip(x, values, strict=True):
        low, high = value["low"], value["high"]
        if low is not None and high is not None:
            axis.plot([at, at], [low, high], color=color, linewidth=1.5)
