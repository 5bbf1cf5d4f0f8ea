"""Makes the plot of a benchmark: a grid of panels that share their y axis and one legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Line:
    """The points of one method in one panel."""

    label: str
    points: Sequence[tuple[float, float]]  # x and y, from left to right
    style: dict[str, Any] = field(default_factory=dict)  # as matplotlib's `plot` takes it


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    lines: Sequence[Line]


def plot_panels(
    path: Path,
    panels: Sequence[Sequence[Panel]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] | None = None,
    log_y: bool = True,
    level: float | None = None,
) -> None:
    """Plots a grid of panels and writes it as an image. The x axes are logarithmic.

    Args:
        path: The image to write; its suffix names the format.
        panels: Rows of panels, all of one length.
        title: The line above all panels.
        x_label: Label of the x axes.
        y_label: Label of the y axes, which all panels share.
        x_ticks: Places of the ticks on the x axes; matplotlib's if not given.
        log_y: Whether the y axes are logarithmic.
        level: A y at which every panel has a thin line.
    """
    columns = len(panels[0])
    figure = Figure(figsize=(1.9 + 3.3 * columns, 1.2 + 3.3 * len(panels)))
    grid = figure.subplots(len(panels), columns, squeeze=False, sharey=True)
    for axes, row in zip(grid, panels, strict=True):
        for axis, panel in zip(axes, row, strict=True):
            for line in panel.lines:
                if line.points:
                    x, y = zip(*line.points, strict=True)
                    axis.plot(x, y, label=line.label, **{"marker": "o", "markersize": 3, **line.style})
            if level is not None:
                axis.axhline(level, color="black", linewidth=0.8)
            axis.set_title(panel.title, fontsize=9)
            axis.set(xscale="log", yscale="log" if log_y else "linear", xlabel=x_label)
            if x_ticks is not None:
                axis.set_xticks(x_ticks, [f"{tick:g}" for tick in x_ticks], fontsize=7)
                axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(y_label)
    lines = {label: line for axis in grid.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.suptitle(title, fontsize=7)
    figure.tight_layout(rect=(0, 0, 1 - 1.6 / figure.get_figwidth(), 1))
    figure.legend(lines.values(), lines.keys(), loc="center right", fontsize=8)
    figure.savefig(path, dpi=110)
