"""Writes the findings of a study as results.csv."""

from __future__ import annotations

import csv
from pathlib import Path

from .findings import Findings
from .measurements import COSTS


def write_csv(findings: Findings, path: Path) -> None:
    """Writes a row for each run, seed, metric and view, with the cost of the run.

    Args:
        findings: What the study found.
        path: The file to write; an older one is replaced.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["run", "seed", "metric", "view", "value", *COSTS.values(), "verifier_errors"])
        for result in findings.results:
            for metric, views in findings.values.items():
                for name, by_run in views.items():
                    value = by_run[result.label, result.seed]
                    costs = [f"{result.costs[cost]:.10g}" for cost in COSTS.values()]
                    row = [result.label, result.seed, metric, name, repr(float(value)), *costs, result.verifier_errors]
                    rows.writerow(row)
