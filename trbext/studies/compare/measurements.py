"""Reads what the runs of a study measured: curves of the declared metrics over steps and cost, and diagnostics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UsageError
from ...runs.folder import RunFolder
from ...runs.resume_rules import changes
from ...runs.settings import parse_settings
from ...training.metrics.metric_table import DIAGNOSTICS, Metrics
from .declaration import Run, Study
from .views import Floats
from .worker import finished

# Cumulative costs that every log holds (trbext/training/metrics/cost.py).
COSTS = {
    "compute/seconds": "seconds",
    "compute/student_tokens": "student_tokens",
    "compute/teacher_tokens": "teacher_tokens",
}


@dataclass(frozen=True)
class Series:
    """A number logged over a run, at optimizer steps and at cumulative costs. What was not finite is NaN."""

    step: Floats  # [E]
    costs: dict[str, Floats]  # [E] by kind of cost
    value: Floats  # [E]

    @classmethod
    def read(cls, lines: list[Metrics], name: str, every: int = 1) -> Series:
        """Takes a metric from the lines of a run.

        A run that continues from a checkpoint may be evaluated at its first step. Other runs are not, so steps that
        are no multiple of `every` are left out.

        Args:
            lines: Of metrics.jsonl.
            name: Of the metric.
            every: Optimizer steps.

        Returns:
            The series; of equal steps the last counts.
        """
        found = list({line["step"]: line for line in lines if name in line and line["step"] % every == 0}.values())
        columns = {key: np.array([_number(line.get(key)) for line in found]) for key in (*COSTS, "step", name)}
        return cls(columns["step"], {short: columns[key] for key, short in COSTS.items()}, columns[name])


@dataclass(frozen=True)
class RunResult:
    """The measurements of one finished run."""

    label: str
    seed: int
    metrics: dict[str, Series]
    diagnostics: dict[str, Series]
    costs: dict[str, float]  # of the whole run
    verifier_errors: int


def read_results(study: Study) -> list[RunResult]:
    """Reads the finished runs of a study, in its order.

    Raises:
        UsageError: A run lacks an evaluation, or is not the one that its folder is named after.
    """
    results = []
    for run in study.runs:
        for seed in study.seeds:
            folder = study.run_folder(run, seed)
            if not finished(folder):
                continue
            _check_settings(study, run, seed)
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


def _check_settings(study: Study, run: Run, seed: int) -> None:
    """Checks that a folder, which may have been renamed or copied, holds the run and seed of its name."""
    folder = RunFolder(study.run_folder(run, seed))
    before = folder.settings()
    if before is None:
        return
    _, _, now = parse_settings(study.settings(run, seed))
    own = {*run.overrides, "seed"}
    changed = changes({n: v for n, v in before.items() if n in own}, {n: v for n, v in now.items() if n in own})
    if changed:
        found = ", ".join(f"{name}: {change}" for name, change in changed.items())
        raise UsageError(f"{folder.config} must hold the settings of run {run.label!r}, got others ({found})")


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


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
