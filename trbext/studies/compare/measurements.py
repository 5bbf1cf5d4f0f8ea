"""What the runs of a study measured: curves of the declared metrics over steps and cost, and diagnostics."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UsageError
from ...runs.folder import RunFolder
from ...training.metric_table import DIAGNOSTICS, Metrics
from .declaration import Study
from .views import VIEWS, Floats, view
from .worker import finished

# Cumulative costs that every log holds (trbext/training/cost.py).
COSTS = {
    "compute/seconds": "seconds",
    "compute/student_tokens": "student_tokens",
    "compute/teacher_tokens": "teacher_tokens",
}


@dataclass(frozen=True)
class Series:
    """A number logged over a run: `value` [E] at optimizer steps `step` [E] and at cumulative costs [E]. NaN stands
    for what was not finite."""

    step: Floats
    costs: dict[str, Floats]
    value: Floats

    @classmethod
    def read(cls, lines: list[Metrics], name: str, every: int = 1) -> Series:
        """The lines that log `name` at a step that is a multiple of `every`, the last of equal steps.

        A run that goes on from a checkpoint may be evaluated where it went on; others were not, so that is left out.
        """
        found = list({line["step"]: line for line in lines if name in line and line["step"] % every == 0}.values())
        columns = {key: np.array([_number(line.get(key)) for line in found]) for key in (*COSTS, "step", name)}
        return cls(columns["step"], {short: columns[key] for key, short in COSTS.items()}, columns[name])


@dataclass(frozen=True)
class RunResult:
    """One finished run."""

    label: str
    seed: int
    metrics: dict[str, Series]
    diagnostics: dict[str, Series]
    costs: dict[str, float]  # of the whole run
    verifier_errors: int


def read_results(study: Study) -> list[RunResult]:
    """The finished runs of a study, in its order."""
    results = []
    for run in study.runs:
        for seed in study.seeds:
            folder = study.run_folder(run, seed)
            if not finished(folder):
                continue
            lines = RunFolder(folder).read_metrics()
            results.append(
                RunResult(
                    label=run.label,
                    seed=seed,
                    metrics={m.name: _evaluations(study, folder, lines, m.name) for m in study.metrics},
                    diagnostics={name: Series.read(lines, name) for name in DIAGNOSTICS},
                    costs={short: max(_number(line.get(key, 0)) for line in lines) for key, short in COSTS.items()},
                    verifier_errors=sum(int(line.get("eval_verifier_errors") or 0) for line in lines),
                )
            )
    return results


def _evaluations(study: Study, folder: Path, lines: list[Metrics], name: str) -> Series:
    series = Series.read(lines, name, study.eval_every)
    expected = range(study.eval_every, study.max_steps + 1, study.eval_every)
    steps = [int(step) for step in series.step]
    if [step for step in steps if step > 0] != list(expected):
        raise UsageError(
            f"{folder / 'metrics.jsonl'} holds {name} at steps {steps}, a whole run has it every {study.eval_every} "
            f"steps to {study.max_steps}: delete the folder, and the run is repeated"
        )
    return series


def views_of(study: Study, results: list[RunResult]) -> dict[str, dict[str, dict[tuple[str, int], float]]]:
    """By metric and view, the value of every run (label, seed).

    Budgets of equal cost are, for each seed, the least that any run had spent at its last evaluation: what all of them
    can be read at.
    """
    budgets = {
        (cost, result.seed): min(
            other.metrics[study.metric.name].costs[cost][-1] for other in results if other.seed == result.seed
        )
        for cost in COSTS.values()
        for result in results
    }
    found: dict[str, dict[str, dict[tuple[str, int], float]]] = {}
    for metric in study.metrics:
        found[metric.name] = {name: {} for name in VIEWS}
        for result in results:
            # Every metric is read at the checkpoint that the declared one selects.
            selection = result.metrics[study.metric.name].value, study.metric.better
            series = result.metrics[metric.name]
            for name in VIEWS:
                found[metric.name][name][result.label, result.seed] = view(
                    name,
                    series.step,
                    series.value,
                    costs=series.costs,
                    budgets={cost: budgets[cost, result.seed] for cost in COSTS.values()},
                    last=study.final_evaluations,
                    selection=selection,
                )
    return found


def write_csv(study: Study, results: list[RunResult], path: Path) -> None:
    """One row per run, seed, metric and view, with what the run cost."""
    values = views_of(study, results)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["run", "seed", "metric", "view", "value", *COSTS.values(), "verifier_errors"])
        for result in results:
            for metric, views in values.items():
                for name, by_run in views.items():
                    value = by_run[result.label, result.seed]
                    costs = [f"{result.costs[cost]:.10g}" for cost in COSTS.values()]
                    row = [result.label, result.seed, metric, name, repr(float(value)), *costs, result.verifier_errors]
                    rows.writerow(row)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
