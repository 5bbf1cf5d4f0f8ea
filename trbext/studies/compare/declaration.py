"""Reads and checks a study's YAML file: runs of common settings that differ in named fields, each with every seed.

    title: ...
    output_dir: runs/study
    metric: {name: eval_pass@1, better: higher, final_evaluations: 3}
    secondary_metrics: [eval_loss]
    reference: OPD                  # or a list of runs; every other run is compared with it
    seeds: [100, 101, 102]
    processes: 2                    # runs at a time, each on one GPU if there are several
    threads: 1                      # of each
    keep_models: true
    base: {...}                     # fields of `trb train`, the same for all runs
    runs:
      OPD: {rollout_policy: student}
      TRB: {rollout_policy: trb, sweep: {trb_epsilon: [0.1, 0.5]}}

A sweep makes a run of every combination of its values, named "TRB epsilon=0.1". The metric is declared, so that it is
chosen before there are results to see.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.yaml_file import read_yaml
from ...errors import UsageError
from ...runs.settings import parse_settings
from ...training.config import TRBConfig
from ...training.metrics.metric_table import JUDGES, METRICS, Better
from .fairness import check_judged_alike, check_overrides
from .folder_names import folder_names
from .values import as_list, count, mapping, text, truth

KEYS = {
    *("title", "output_dir", "metric", "secondary_metrics", "reference", "seeds", "processes", "threads"),
    *("keep_models", "base", "runs"),
}
# May differ between a study and its continuation: nothing that is computed or reported depends on them.
FREE_ON_RESUME = {"title", "output_dir", "processes", "threads", "keep_models"}


@dataclass(frozen=True)
class Metric:
    """A number that every evaluation logs."""

    name: str
    better: Better

    @property
    def words(self) -> str:
        """The metric's title in the words of a report."""
        metric = METRICS[self.name]
        return f"{metric.title} ({metric.unit})" if metric.unit else metric.title

    @property
    def is_share(self) -> bool:
        """Whether it lies in 0..1 and reads best in percent."""
        return self.name == "eval_pass@1"


@dataclass(frozen=True)
class Run:
    """One column of the study: a label and the fields in which it differs from the base."""

    label: str
    overrides: dict[str, Any]
    folder_name: str


@dataclass(frozen=True)
class Study:
    """A checked study file."""

    title: str
    folder: Path
    metric: Metric
    secondary: tuple[Metric, ...]
    final_evaluations: int  # the "final" view is the mean of so many last evaluations
    references: tuple[str, ...]  # labels of runs that others are compared with
    seeds: tuple[int, ...]
    processes: int
    threads: int | None  # of each process; None = the cores divided by `processes`
    keep_models: bool
    base: dict[str, Any]
    runs: tuple[Run, ...]
    max_steps: int  # optimizer steps of every run
    eval_every: int  # of them between two evaluations

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The declared metric, and then the secondary ones."""
        return (self.metric, *self.secondary)

    @property
    def contrasts(self) -> list[tuple[str, str]]:
        """Pairs (run, reference) that are compared; a pair of two references once."""
        pairs = [(run.label, reference) for reference in self.references for run in self.runs if run.label != reference]
        return [pair for i, pair in enumerate(pairs) if (pair[1], pair[0]) not in pairs[:i]]

    def run_folder(self, run: Run, seed: int) -> Path:
        """Returns the folder of one run."""
        return self.folder / "runs" / run.folder_name / f"seed-{seed}"

    def settings(self, run: Run, seed: int) -> dict[str, Any]:
        """Returns the fields of `trb train` of one run."""
        resumable = {"save_strategy": "steps", "save_steps": 0.1, "save_total_limit": 1}
        folder = str(self.run_folder(run, seed))
        return {**resumable, **self.base, **run.overrides, "seed": seed, "output_dir": folder}


def read_study(path: Path) -> tuple[Study, dict[str, Any]]:
    """Reads and checks a study. It parses the settings of every run as `trb train` would.

    Args:
        path: The YAML file.

    Returns:
        The study, and the contents of the file.

    Raises:
        UsageError: The study could not run, or would not be fair.
    """
    # 1. Read the keys, each by its type.
    declared = read_yaml(path)
    for key in declared:
        if key not in KEYS:
            raise UsageError(f"{path}: unknown key {key!r}; a study has {', '.join(sorted(KEYS))}")
    base, runs = mapping(declared, "base"), runs_of(declared)
    metric, final_evaluations = _metric(mapping(declared, "metric"))
    secondary = tuple(_known_metric(name) for name in as_list(declared.get("secondary_metrics") or []))
    metrics = (metric, *secondary)
    if len({m.name for m in metrics}) < len(metrics):
        raise UsageError("metric and secondary_metrics name a metric twice")
    threads = declared.get("threads")
    study = Study(
        title=text(declared, "title", path.stem),
        folder=Path(os.path.expanduser(text(declared, "output_dir", f"runs/{path.stem}"))),  # as `trb train` does
        metric=metric,
        secondary=secondary,
        final_evaluations=final_evaluations,
        references=_references(declared, runs),
        seeds=_seeds(declared.get("seeds")),
        processes=count("processes", declared.get("processes", 1)),
        threads=None if threads is None else count("threads", threads),
        keep_models=truth(declared, "keep_models", True),
        base=base,
        runs=runs,
        max_steps=0,
        eval_every=0,
    )
    # 2. Parse the settings of every run, and check that only what may differ differs.
    for name in ("seed", "output_dir"):
        if name in base:
            raise UsageError(f"base must not hold {name}: a study sets it for each run")
    for run in runs:
        check_overrides(run)
    for seed in study.seeds[1:]:
        _parsed(study, runs[0], seed)
    configs = {run.label: _parsed(study, run, study.seeds[0]) for run in runs}
    check_judged_alike(configs, metrics)
    config = next(iter(configs.values()))
    # 3. Check that the evaluations yield what the metrics need.
    every = _check_evaluations(config, metrics, final_evaluations)
    return dataclasses.replace(study, max_steps=config.max_steps, eval_every=every), declared


def runs_of(declared: dict[str, Any]) -> tuple[Run, ...]:
    """Returns the runs that the contents of a study's file declare.

    Raises:
        UsageError: They are not right.
    """
    # 1. Make a run of every combination of a sweep's values.
    runs: list[tuple[str, dict[str, Any]]] = []
    for label, fields in mapping(declared, "runs").items():
        if not isinstance(label, str):
            raise UsageError(f"names of runs must be text, got {label!r}: quote it")
        if fields is None:
            fields = {}
        if not isinstance(fields, dict):
            raise UsageError(f"run {label!r} must hold fields and values, got {fields!r}")
        sweep = fields.get("sweep") or {}
        for name in (*fields, *(sweep if isinstance(sweep, dict) else ())):
            if not isinstance(name, str):
                raise UsageError(f"run {label!r}: names of fields must be text, got {name!r}: quote it")
        fixed = {name: value for name, value in fields.items() if name != "sweep"}
        if not isinstance(sweep, dict) or not all(isinstance(v, list) and v for v in sweep.values()):
            raise UsageError(f"the sweep of run {label!r} must map fields to lists of values, got {sweep!r}")
        for name in sweep.keys() & fixed.keys():
            raise UsageError(f"run {label!r} both sets and sweeps {name}")
        for values in itertools.product(*sweep.values()):
            point = dict(zip(sweep, values, strict=True))
            words = [f"{name.removeprefix('trb_')}={value}" for name, value in point.items()]
            runs.append((" ".join([label, *words]), fixed | point))
    # 2. Refuse equal labels, and a study of one run.
    labels = [label for label, _ in runs]
    name, times = Counter(labels).most_common(1)[0]
    if times > 1:
        raise UsageError(f"two runs are named {name!r}: give one of them, or the values of its sweep, other names")
    if len(runs) < 2:
        raise UsageError(f"a study compares at least two runs, got {len(runs)}")
    # 3. Name the folders.
    folders = folder_names(labels)
    for folder in folders:
        try:
            os.fsencode(folder)
        except UnicodeEncodeError as error:
            raise UsageError(
                f"a folder cannot be named {folder!r} in the locale's encoding {error.encoding}: set PYTHONUTF8=1"
            ) from error
    return tuple(Run(label, fields, folder) for (label, fields), folder in zip(runs, folders, strict=True))


def _metric(declared: dict[str, Any]) -> tuple[Metric, int]:
    for key in declared.keys() - {"name", "better", "final_evaluations"}:
        raise UsageError(f"metric holds name, better and final_evaluations, got {key!r}")
    metric = _known_metric(declared.get("name"))
    better = declared.get("better", metric.better)
    if better not in ("higher", "lower"):
        raise UsageError(f"metric: better must be higher or lower, got {better!r}")
    return Metric(metric.name, better), count("final_evaluations", declared.get("final_evaluations", 3))


def _known_metric(name: Any) -> Metric:
    better = METRICS[name].better if isinstance(name, str) and name in METRICS else None
    if better is None:
        raise UsageError(f"unknown metric {name!r}; a study can be judged by {', '.join(JUDGES)}")
    return Metric(name, better)


def _references(declared: dict[str, Any], runs: tuple[Run, ...]) -> tuple[str, ...]:
    references = tuple(map(str, as_list(declared.get("reference") or [])))
    labels = [run.label for run in runs]
    if not references:
        raise UsageError(f"reference is not set: name the run that others are compared with, of {', '.join(labels)}")
    for reference in references:
        if reference not in labels or references.count(reference) > 1:
            raise UsageError(f"reference must name each run once, of {', '.join(labels)}, got {list(references)}")
    return references


def _seeds(declared: Any) -> tuple[int, ...]:
    if not isinstance(declared, list) or not all(type(seed) is int and seed >= 0 for seed in declared):
        raise UsageError(f"seeds must be a list of whole numbers, got {declared!r}")
    if len(declared) < 2 or len(set(declared)) < len(declared):
        raise UsageError(f"seeds must be at least two different ones, got {declared}")
    return tuple(declared)


def _parsed(study: Study, run: Run, seed: int) -> TRBConfig:
    try:
        arguments, config, _ = parse_settings(study.settings(run, seed))
    except UsageError as error:
        raise UsageError(f"run {run.label!r}: {error}") from error
    if not arguments.eval_prompts:
        raise UsageError("base must set eval_prompts, on which the runs are judged")
    return config


def _check_evaluations(config: TRBConfig, metrics: tuple[Metric, ...], final_evaluations: int) -> int:
    """Returns the optimizer steps between two evaluations."""
    if config.max_steps < 1:
        raise UsageError("base must set max_steps, the number of optimizer steps of every run")
    if config.eval_strategy != "steps" or not config.eval_steps:
        raise UsageError("base must set eval_strategy: steps and eval_steps, or there are no curves to compare")
    for metric in metrics:
        if metric.name == "eval_pass@1" and config.eval_verifier is None:
            raise UsageError("metric eval_pass@1 needs eval_verifier in base")
    every = int(config.eval_steps if config.eval_steps >= 1 else math.ceil(config.eval_steps * config.max_steps))
    if config.max_steps % every:
        raise UsageError(f"eval_steps must divide max_steps = {config.max_steps}, or the end is not evaluated: {every}")
    if config.eval_delay > every:
        raise UsageError(f"eval_delay must be at most eval_steps = {every}, got {config.eval_delay}")
    times = config.max_steps // every
    if times < final_evaluations:
        raise UsageError(f"final_evaluations = {final_evaluations}, but a run is evaluated only {times} times")
    return every
