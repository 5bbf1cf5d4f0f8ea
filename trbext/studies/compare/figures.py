"""Plots the figures of a study, each one panel: a phone shows them one below the other at a readable size."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...training.metrics.metric_table import DIAGNOSTICS, METRICS
from .contrasts import Contrast
from .declaration import Metric, Study
from .findings import Findings
from .measurements import RunResult, Series
from .views import VIEWS, Floats
from .wording import VIEW_TITLES

WIDTH = 4.8  # inches
# Okabe and Ito's colors, which color-blind readers can tell apart; with the line styles, enough for 21 runs.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
STYLES = ("-", "--", ":")
REFERENCE_COLOR = "#000000"
BINS = 60  # points of a diagnostic curve

COST_TITLES = {
    "step": "optimizer steps",
    "seconds": "seconds of training",
    "teacher_tokens": "tokens through the teacher",
}


@dataclass(frozen=True)
class Picture:
    """A figure on disk, PNG and SVG, and the SVG's text for the page."""

    name: str
    title: str
    svg: str


@matplotlib.rc_context({"text.parse_math": False})  # a name may hold "$"
def plot_all(findings: Findings, folder: Path) -> list[Picture]:
    """Plots every figure of a study.

    Args:
        findings: What the study found.
        folder: Where to write each figure as NAME.png and NAME.svg.

    Returns:
        The figures, curves first.
    """
    study, results = findings.study, findings.results
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for metric in study.metrics:
        stem = metric.name.removeprefix("eval_").replace("/", "-").replace("@", "-at-")
        for cost, words in COST_TITLES.items():
            title = f"{metric.words} over {words}"
            figure = _curves(study, results, metric, cost, title)
            pictures.append(_save(figure, folder, f"curve-{stem}-{cost}", title))
        for view in VIEWS:
            for reference in study.references:
                rows = [c for c in findings.contrasts[metric.name][view] if c.reference == reference]
                if rows:
                    title = f"{VIEW_TITLES[view]}: {metric.words}, difference to {reference}"
                    name = f"contrasts-{stem}-{view}-{_slug(study, reference)}"
                    pictures.append(_save(_forest(metric, rows, title), folder, name, title))
    for name in DIAGNOSTICS:
        title, unit = METRICS[name].capitalized, METRICS[name].unit
        if any(np.isfinite(result.diagnostics[name].value).any() for result in results):
            figure = _diagnostic(study, results, name, title, unit)
            pictures.append(_save(figure, folder, name.removeprefix("trb/").replace("_", "-"), title))
    return pictures


def _curves(study: Study, results: Sequence[RunResult], metric: Metric, cost: str, title: str) -> Figure:
    figure, axes = _panel(study, title)
    for run, (color, style) in _looks(study).items():
        series = [result.metrics[metric.name] for result in results if result.label == run]
        if series:
            x = _mean([s.step if cost == "step" else s.costs[cost] for s in series])
            _band(axes, x, np.stack([s.value for s in series]), run, color, style)
    if metric.is_share:
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    axes.set_xlabel(COST_TITLES[cost], fontsize=9)
    axes.set_ylabel(metric.words, fontsize=9)
    _legend(figure, axes)
    return figure


def _diagnostic(study: Study, results: Sequence[RunResult], name: str, title: str, unit: str) -> Figure:
    figure, axes = _panel(study, title)
    for run, (color, style) in _looks(study).items():
        series = [result.diagnostics[name] for result in results if result.label == run]
        series = [s for s in series if np.isfinite(s.value).any()]
        if series:
            binned = [_binned(s, study.max_steps) for s in series]
            _band(axes, binned[0][0], np.stack([value for _, value in binned]), run, color, style)
    axes.set_xlabel(COST_TITLES["step"], fontsize=9)
    axes.set_ylabel(unit, fontsize=9)
    _legend(figure, axes)
    return figure


def _forest(metric: Metric, rows: Sequence[Contrast], title: str) -> Figure:
    figure = Figure(figsize=(WIDTH, 1.3 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    scale = 100 if metric.is_share else 1
    for place, contrast in enumerate(reversed(rows)):
        color = COLORS[0] if contrast.resolved else "#666666"
        axes.plot([scale * contrast.low, scale * contrast.high], [place, place], color=color, linewidth=2)
        face = color if contrast.resolved else "white"
        axes.plot(scale * contrast.mean, place, "o", color=color, markerfacecolor=face, markersize=6)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [contrast.run for contrast in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    unit = "percentage points" if metric.is_share else "in the metric's unit"
    axes.set_xlabel(f"{unit}; {metric.better} is better; filled: resolved", fontsize=8)
    escaped = title.replace("$", r"\$")  # matplotlib takes a title that it wraps for a formula in any case
    axes.set_title(escaped, fontsize=9, loc="left", wrap=True, parse_math=True)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _panel(study: Study, title: str) -> tuple[Figure, Axes]:
    legend = 0.17 * -(-len(study.runs) // 2)
    figure = Figure(figsize=(WIDTH, 3.2 + legend), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=9, loc="left", wrap=True)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2, fontsize=8, frameon=False)


def _band(axes: Axes, x: Floats, values: Floats, label: str, color: str, style: str) -> None:
    """Means over seeds, and one standard deviation of the seeds about it."""
    mean = values.mean(0)
    axes.plot(x, mean, style, color=color, label=label, linewidth=1.5)
    if len(values) > 1:
        spread = values.std(0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.1, linewidth=0)


def _looks(study: Study) -> dict[str, tuple[str, str]]:
    """Colors and line style of every run; the first reference is black."""
    others = [run.label for run in study.runs if run.label != study.references[0]]
    looks = {study.references[0]: (REFERENCE_COLOR, STYLES[0])}
    looks |= {
        label: (COLORS[i % len(COLORS)], STYLES[i // len(COLORS) % len(STYLES)]) for i, label in enumerate(others)
    }
    return {run.label: looks[run.label] for run in study.runs}


def _binned(series: Series, max_steps: int) -> tuple[Floats, Floats]:
    """Means over BINS stretches of the run: single steps are noisy. An empty stretch is NaN."""
    edges = np.linspace(0, max_steps, min(BINS, max_steps) + 1)
    place = np.clip(np.searchsorted(edges, series.step, side="left") - 1, 0, len(edges) - 2)
    finite = np.isfinite(series.value)
    counts = np.bincount(place[finite], minlength=len(edges) - 1)
    sums = np.bincount(place[finite], series.value[finite], len(edges) - 1)
    with np.errstate(invalid="ignore"):
        return (edges[:-1] + edges[1:]) / 2, sums / counts


def _mean(rows: Sequence[Floats]) -> Floats:
    return np.asarray(np.stack(rows).mean(0))


def _slug(study: Study, label: str) -> str:
    return next(run.folder_name for run in study.runs if run.label == label)


def _save(figure: Figure, folder: Path, name: str, title: str) -> Picture:
    # Text as text: lighter, and read out by screen readers. Equal figures are equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(folder / f"{name}.png", dpi=150)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    return Picture(name, title, svg)
