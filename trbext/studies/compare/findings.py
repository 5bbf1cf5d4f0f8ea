"""Holds the findings of a study: everything that its console output, page, figures and CSV show, computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .contrasts import Contrast, contrasts
from .declaration import Metric, Study
from .measurements import COSTS, RunResult
from .views import VIEWS, Floats, view

ByRun = Mapping[tuple[str, int], float]  # a number of each run, by label and seed


@dataclass(frozen=True)
class Findings:
    """A study, what its finished runs measured, and what that says of their differences.

    `find` makes it; every report renders it, so that no two of them can disagree.
    """

    study: Study
    declared: Mapping[str, Any]  # the study file's contents
    results: Sequence[RunResult]  # of the finished runs, in the study's order
    values: Mapping[str, Mapping[str, ByRun]]  # by metric and view
    contrasts: Mapping[str, Mapping[str, Sequence[Contrast]]]  # by metric and view

    @classmethod
    def find(cls, study: Study, declared: Mapping[str, Any], results: Sequence[RunResult]) -> Findings:
        """Computes the views of every run and the contrasts of every view.

        Args:
            study: The checked declaration.
            declared: The contents of its file.
            results: Measurements of the finished runs, at least one.

        Returns:
            The findings.
        """
        values = _values(study, results)
        compared = {
            metric.name: {name: contrasts(values[metric.name][name], study.contrasts) for name in VIEWS}
            for metric in study.metrics
        }
        return cls(study, declared, results, values, compared)

    def finite(self, metric: Metric, view: str, run: str) -> Floats:
        """Returns the finite values of a run in a view, one per seed."""
        by_run = self.values[metric.name][view]
        return np.array([value for (label, _), value in by_run.items() if label == run and np.isfinite(value)])

    def mean(self, metric: Metric, view: str, run: str) -> float:
        """Returns the mean over the seeds of a run with a finite value, NaN if there is none."""
        own = self.finite(metric, view, run)
        return float(own.mean()) if len(own) else float("nan")

    def contrast(self, metric: Metric, view: str, run: str, reference: str) -> Contrast | None:
        """Returns the comparison of a run with a reference, None if the study does not declare it."""
        compared = self.contrasts[metric.name][view]
        return next((c for c in compared if (c.run, c.reference) == (run, reference)), None)

    def mean_costs(self) -> dict[str, dict[str, float]]:
        """Returns the mean costs of every run that finished a seed, by label and kind of cost."""
        labels = dict.fromkeys(result.label for result in self.results)
        return {
            run.label: {
                cost: float(np.mean([result.costs[cost] for result in self.results if result.label == run.label]))
                for cost in COSTS.values()
            }
            for run in self.study.runs
            if run.label in labels
        }

    @property
    def declared_runs(self) -> int:
        """Number of runs times seeds that the study declares."""
        return len(self.study.runs) * len(self.study.seeds)

    @property
    def missing_runs(self) -> int:
        """Number of declared runs that are not finished."""
        return self.declared_runs - len(self.results)

    @property
    def runs_without_a_value(self) -> list[tuple[str, int]]:
        """Runs (label, seed) without a finite value in some view of some metric."""
        lost = {
            run
            for by_view in self.values.values()
            for by_run in by_view.values()
            for run, value in by_run.items()
            if np.isnan(value)
        }
        return sorted(lost)

    @property
    def verifier_errors(self) -> int:
        """Number of completions on which the verifier raised."""
        return sum(result.verifier_errors for result in self.results)


def _values(study: Study, results: Sequence[RunResult]) -> dict[str, dict[str, dict[tuple[str, int], float]]]:
    """Returns the value of every run (label, seed), by metric and view.

    The budget of a view at equal cost is, for each seed, the least cost that a run had spent at its last evaluation:
    the curves of all runs reach it.
    """
    budgets = {
        (cost, result.seed): min(
            other.metrics[study.metric.name].costs[cost][-1] for other in results if other.seed == result.seed
        )
        for cost in COSTS.values()
        for result in results
    }
    values: dict[str, dict[str, dict[tuple[str, int], float]]] = {}
    for metric in study.metrics:
        values[metric.name] = {name: {} for name in VIEWS}
        for result in results:
            # Every metric is read at the checkpoint that the declared metric selects.
            selection = result.metrics[study.metric.name].value, study.metric.better
            series = result.metrics[metric.name]
            for name in VIEWS:
                values[metric.name][name][result.label, result.seed] = view(
                    name,
                    series.step,
                    series.value,
                    costs=series.costs,
                    budgets={cost: budgets[cost, result.seed] for cost in COSTS.values()},
                    last=study.final_evaluations,
                    selection=selection,
                )
    return values
