"""Prints the findings of a study: one table, the warnings, and a line of sentences for each view."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .findings import Findings
from .views import VIEWS
from .wording import VIEW_TITLES, difference, number, view_sentences, warnings_of

SHOWN = ("final", "best", "area")  # views that fit beside each other on a screen


def print_findings(findings: Findings, console: Console) -> None:
    """Prints what a study found by its declared metric.

    Args:
        findings: What the study found.
        console: Where to print.
    """
    study, metric = findings.study, findings.study.metric
    table = Table(title=escape(f"{study.title}: {metric.words}, {metric.better} is better"), min_width=60)
    table.add_column("")
    for view in SHOWN:
        table.add_column(VIEW_TITLES[view], justify="right")
    for run in study.runs:
        cells = []
        for view in SHOWN:
            mean = number(metric, findings.mean(metric, view, run.label))
            contrast = findings.contrast(metric, view, run.label, study.references[0])
            cells.append(mean if contrast is None else f"{mean}  {difference(metric, contrast)}")
        table.add_row(escape(run.label), *cells)
    console.print(table)
    line = f"Differences are to {study.references[0]}, with 95 % intervals."
    console.print(line, highlight=False, soft_wrap=True, markup=False)
    for line in warnings_of(findings):
        console.print(line, style="yellow", highlight=False, soft_wrap=True, markup=False)
    for view in VIEWS:
        sentences = " ".join(view_sentences(metric, findings.contrasts[metric.name][view]))
        console.print(f"{VIEW_TITLES[view]}: {sentences}", highlight=False, soft_wrap=True, markup=False)
