"""`trb compare`: run the study, then write results.csv, figures/ and index.html, and say what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ...errors import UsageError
from .contrasts import contrasts
from .declaration import Study, read_study
from .figures import draw_all
from .measurements import RunResult, read_results, views_of, write_csv
from .page import Contrasts, Values, warnings_of, write_page
from .runner import open_folder, run_study
from .views import VIEWS
from .wording import VIEW_TITLES, difference, number, planned_power, view_sentences


def compare(config: Path, *, report_only: bool = False) -> list[str]:
    """Run what is missing of the study (nothing if `report_only`) and report it; returns a line per failed run.

    UsageError: the study, its folder or one of its runs is not right. Interrupted: stopped by a signal.
    """
    console = Console()
    study, declared = read_study(config)
    failures: list[str] = []
    if report_only:
        open_folder(study, declared)
    else:
        warning = planned_power(study)
        if warning:
            console.print(warning, style="yellow", soft_wrap=True, highlight=False)
        failures = run_study(study, declared, console)
    results = read_results(study)
    if not results:
        raise UsageError(f"no run of {study.folder} is finished" + "".join(f"; {line}" for line in failures[:1]))
    page = report(study, declared, results, console)
    console.print(f"Page: {page}", highlight=False, soft_wrap=True)
    return failures


def report(study: Study, declared: dict[str, Any], results: list[RunResult], console: Console) -> Path:
    """Write every output of the study, print its findings, and return the page's path."""
    values = views_of(study, results)
    found = {
        metric.name: {view: contrasts(values[metric.name][view], study.contrasts) for view in VIEWS}
        for metric in study.metrics
    }
    write_csv(study, results, study.folder / "results.csv")
    pictures = draw_all(study, results, found, study.folder / "figures")
    page = study.folder / "index.html"
    write_page(study, declared, results, values, found, pictures, page)
    _print(study, results, values, found, console)
    return page


def _print(study: Study, results: list[RunResult], values: Values, found: Contrasts, console: Console) -> None:
    metric = study.metric
    table = Table(title=f"{study.title}: {metric.words}, {metric.better} is better", min_width=60)
    table.add_column("")
    shown = ("final", "best", "area")
    for view in shown:
        table.add_column(VIEW_TITLES[view], justify="right")
    for run in study.runs:
        cells = []
        for view in shown:
            own = [v for (label, _), v in values[metric.name][view].items() if label == run.label]
            mean = number(metric, sum(own) / len(own) if own else float("nan"))
            contrast = next((c for c in found[metric.name][view] if c.run == run.label), None)
            cells.append(mean if contrast is None else f"{mean}  {difference(metric, contrast)}")
        table.add_row(run.label, *cells)
    console.print(table)
    console.print(f"Differences are to {study.references[0]}, with 95 % intervals.", highlight=False, soft_wrap=True)
    for line in warnings_of(study, results, values, found):
        console.print(line, style="yellow", highlight=False, soft_wrap=True, markup=False)
    for view in VIEWS:
        sentences = " ".join(view_sentences(metric, found[metric.name][view]))
        console.print(f"{VIEW_TITLES[view]}: {sentences}", highlight=False, soft_wrap=True, markup=False)
