"""Plots pass@1 of checkpoints over optimizer steps, with bands of their intervals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.ticker
from matplotlib.figure import Figure

from .report import Report

# Okabe and Ito's colors, which color-blind readers can tell apart.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@matplotlib.rc_context({"text.parse_math": False})  # a name may hold "$"
def plot_checkpoints(report: Report, path: Path) -> str:
    """Plots the mean of the suite and each benchmark.

    Args:
        report: The figures.
        path: The .svg file to write.

    Returns:
        The text of the SVG, without its XML header.
    """
    models = list(report.checkpoints)
    places, are_steps = steps_of(models)
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    lines = {"mean": [found.mean for found in report.checkpoints.values()]}
    if len(report.completions) > 1:
        for name in report.completions:
            lines[name] = [found.benchmarks[name]["pass@1"] for found in report.checkpoints.values()]
    order = sorted(range(len(places)), key=lambda at: places[at])
    x = [places[at] for at in order]
    for number, (name, estimates) in enumerate(lines.items()):
        color, own = COLORS[number % len(COLORS)], [estimates[at] for at in order]
        style = "-" if number < len(COLORS) else "--"
        axes.fill_between(x, [e.low for e in own], [e.high for e in own], color=color, alpha=0.15, linewidth=0)
        axes.plot(x, [e.value for e in own], style, color=color, label=name, marker="o", markersize=4)
        if len(own) == 1:  # a band needs two places
            axes.vlines(x, own[0].low, own[0].high, color=color, alpha=0.4)
    if not are_steps:
        axes.set_xticks(range(len(models)), models, rotation=20, ha="right", fontsize=8)
    axes.set_xlabel("optimizer step" if are_steps else "checkpoint")
    axes.set_ylabel("pass@1")
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    svg = path.read_text(encoding="utf-8")
    return re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)


def steps_of(models: Sequence[str]) -> tuple[list[float], bool]:
    """Returns the place of each checkpoint on the axis, and whether the places are optimizer steps.

    They are if all names end with checkpoint-STEP, as the trainer names them, and none comes twice.
    """
    found = [re.fullmatch(r".*checkpoint-(\d+)/?", model) for model in models]
    steps = [float(match[1]) for match in found if match is not None]
    if len(steps) == len(models) and len(set(steps)) == len(steps):
        return steps, True
    return [float(at) for at in range(len(models))], False
