"""The committed results of the shipped studies are complete, and say what docs/study.md says of them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from trbext.studies.compare.contrasts import contrasts
from trbext.studies.compare.declaration import Metric, Study, read_study
from trbext.studies.compare.views import VIEWS
from trbext.studies.compare.wording import difference, number

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "study"
RECIPES = {path.stem.removeprefix("study-"): path for path in sorted((ROOT / "recipes").glob("study-*.yaml"))}
RECIPES |= {path.stem: path for path in (ROOT / "recipes").glob("control-*.yaml")}  # chosen after a study
STUDIES = sorted(RECIPES)
SHOWN = ("final", "best", "area")

Values = dict[tuple[str, str], dict[tuple[str, int], float]]  # by metric and view, then run and seed


def read(name: str) -> tuple[Study, Values]:
    study, _ = read_study(RECIPES[name])
    values: Values = {}
    with (RESULTS / name / "results.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            values.setdefault((row["metric"], row["view"]), {})[row["run"], int(row["seed"])] = float(row["value"])
    return study, values


def table(study: Study, values: Values, metric: Metric, reference: str) -> Iterator[str]:
    """Returns the rows of docs/study.md for one metric and reference: means, and differences, bold if resolved."""
    found = {}
    for view in SHOWN:
        # Corrected for all comparisons of the view, also those with the other references.
        for contrast in contrasts(values[metric.name, view], study.contrasts):
            if contrast.reference == reference:
                mark = "**" if contrast.resolved else ""
                found[contrast.run, view] = f"{mark}{difference(metric, contrast)}{mark}"
    for run in study.runs:
        cells = []
        for view in SHOWN:
            own = [value for (label, _), value in values[metric.name, view].items() if label == run.label]
            cells.append(f"{number(metric, sum(own) / len(own))} {found.get((run.label, view), '')}".strip())
        yield f"| {run.label} | {' | '.join(cells)} |"


@pytest.mark.parametrize("name", STUDIES)
def test_the_results_are_those_of_every_declared_run(name: str) -> None:
    study, values = read(name)
    runs = {(run.label, seed) for run in study.runs for seed in study.seeds}
    assert set(values) == {(metric.name, view) for metric in study.metrics for view in VIEWS}
    assert all(set(by_run) == runs for by_run in values.values())
    page = (RESULTS / name / "index.html").read_text()
    assert study.title in page
    assert "Incomplete" not in page


@pytest.mark.parametrize("name", STUDIES)
def test_the_tables_in_the_docs_are_those_of_the_results(name: str) -> None:
    study, values = read(name)
    page = (ROOT / "docs" / "study.md").read_text()
    shown = [(study.metric, reference) for reference in study.references]
    shown += [(metric, study.references[0]) for metric in study.metrics[1:]]
    for metric, reference in shown:
        rows = list(table(study, values, metric, reference))
        assert not [row for row in rows if row not in page], "\n".join(rows)
