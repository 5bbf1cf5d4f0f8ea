"""A run that is killed, again and again and anywhere, ends as the run that was not killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from python_tests.processes.forks import forks
from python_tests.runs import kill_runs
from python_tests.runs.run_files import repeatable, same_weights, tiny_run, written
from trbext.runs.folder import RunFolder
from trbext.studies.compare.worker import FINISHED, finished

Task = Callable[..., bool]
EVENTS = 100  # operations on files of the folder in a whole run: somewhat more


def killed(
    function: str, *arguments: Any, folder: Path, event: int | None = None, seconds: float | None = None
) -> bool:
    """Runs a function of kill_runs.py, and tells whether it was killed; otherwise it ended well."""
    child: dict[str, Any] = {"call": f"{kill_runs.__name__}:{function}", "arguments": [*arguments, str(folder), event]}
    (status,) = forks().statuses([child if seconds is None else {**child, "seconds": seconds}])
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert status == 0, forks().printed()
    return False


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Returns the settings of a run with checkpoints, some of them deleted, evaluations, a plot and a model."""
    folder = tmp_path_factory.mktemp("run")
    fields: dict[str, Any] = {
        "lr_scheduler_type": "linear",
        "max_steps": 6,
        "save_steps": 1,
        "save_total_limit": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_on_start": True,
        "eval_verifier": "numeric",
        "eval_prompts_limit": 4,
        "per_device_eval_batch_size": 4,
    }
    settings = tiny_run(folder, **fields)
    return {**settings, "eval_prompts": settings["prompts"]}


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any]) -> tuple[RunFolder, float]:
    """Returns the run that nobody killed, and its duration in seconds."""
    folder = Path(settings["output_dir"])
    path = written(folder.parent / "whole.yaml", settings)
    began = time.monotonic()
    assert not killed("trb", ["train", path], folder=folder)
    seconds = time.monotonic() - began
    return RunFolder(folder), seconds


@pytest.mark.parametrize("at_least", [10, pytest.param(30, marks=pytest.mark.nightly)])
def test_kills_anywhere_change_nothing(
    at_least: int, tmp_path: Path, settings: dict[str, Any], whole: tuple[RunFolder, float]
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    uninterrupted, seconds = whole
    kills = rounds = 0
    while kills < at_least:
        rounds += 1
        run = RunFolder(tmp_path / f"run-{rounds}")
        path = written(tmp_path / f"{rounds}.yaml", {**settings, "output_dir": str(run.path)})
        task = partial(killed, "trb", ["train", path, "--resume", "auto"], folder=run.path)
        while True:
            # Half of the kills come between two operations on files, whose order matters, the others anywhere.
            event, late = chosen.randint(1, EVENTS), chosen.uniform(0, seconds)
            if not (task(event=event) if chosen.random() < 0.5 else task(seconds=late)):
                break
            kills += 1
        assert run.is_finished(), seed
        assert same_weights(run, uninterrupted), seed
        assert repeatable(run) == repeatable(uninterrupted), seed
        assert run.plot.stat().st_size > 10_000
        assert not run.partial_model.exists()


def test_a_run_that_was_killed_before_it_had_begun_begins(
    tmp_path: Path, settings: dict[str, Any], whole: tuple[RunFolder, float]
) -> None:
    run = RunFolder(tmp_path / "run")
    path = written(tmp_path / "run.yaml", {**settings, "output_dir": str(run.path)})
    task = partial(killed, "trb", ["train", path, "--resume", "auto"], folder=run.path)
    for event in range(1, 16):  # up to the first evaluation
        assert task(event=event)
    assert not task()
    assert same_weights(run, whole[0])
    assert repeatable(run) == repeatable(whole[0])


def copied(run: RunFolder, whole: RunFolder, settings: dict[str, Any], *left_out: str) -> str:
    """Makes `run` a copy of the whole run without the named files, and returns its settings file."""
    shutil.rmtree(run.path, ignore_errors=True)
    shutil.copytree(whole.path, run.path, ignore=shutil.ignore_patterns(*left_out))
    fields = {**settings, "output_dir": str(run.path)}
    run.write_settings(fields)
    return written(run.path.with_suffix(".yaml"), fields)


def ends(make: Callable[[], Task], every: int) -> Iterator[int]:
    """Kills the task that `make` returns at each `every`-th operation on files, lets it end after each kill, and
    yields the event.

    The last event is the first that the task survives.
    """
    event, survived = 0, False
    while not survived:
        event += every
        task = make()
        survived = not task(event=event)
        assert not task()
        yield event


def test_every_window_between_the_last_checkpoint_and_the_end_is_closed(
    tmp_path: Path, settings: dict[str, Any], whole: tuple[RunFolder, float]
) -> None:
    """Kills the end of a run at each of its operations on files in turn, each time from a copy of the last
    checkpoint."""
    uninterrupted, run = whole[0], RunFolder(tmp_path / "run")

    def task() -> Task:
        path = copied(run, uninterrupted, settings, "model", "plot.png")
        return partial(killed, "trb", ["train", path, "--resume", "auto"], folder=run.path)

    for event in ends(task, every=4):
        assert run.is_finished(), event
        assert same_weights(run, uninterrupted), event
        assert repeatable(run) == repeatable(uninterrupted), event
        assert run.plot.exists(), event


@pytest.mark.parametrize("keep_model", [True, False])
def test_a_run_of_a_study_ends_once_wherever_it_was_killed(
    tmp_path: Path,
    settings: dict[str, Any],
    whole: tuple[RunFolder, float],
    keep_model: bool,
) -> None:
    uninterrupted, run = whole[0], RunFolder(tmp_path / "run")

    def task() -> Task:
        path = copied(run, uninterrupted, settings)  # finished.json and what follows are missing
        return partial(killed, "work", path, keep_model, folder=run.path)

    for event in ends(task, every=1):
        assert finished(run.path)
        assert not list(run.path.glob("checkpoint-*")), event
        assert run.model.exists() == keep_model
        assert repeatable(run) == repeatable(uninterrupted)
        if keep_model:
            assert same_weights(run, uninterrupted), event
    assert json.loads((run.path / FINISHED).read_text())["finished_at"] <= time.time()
