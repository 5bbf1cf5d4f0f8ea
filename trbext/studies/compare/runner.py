"""Trains every run of a study, some at a time, each in a process of its own, and shows their progress.

    output_dir/study.yaml              the declaration; a folder is continued by the same one only
    output_dir/runs/opd/seed-100/      a run folder of `trb train`
    output_dir/runs/opd/seed-100.yaml  its settings        .log  what it printed

Seeds come one after another, so that a study that was stopped holds complete pairs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from ...data.yaml_file import dump_yaml
from ...errors import INTERRUPTED, USAGE_ERROR, Interrupted, UsageError
from ...runs.inputs import load_inputs
from ...runs.settings import parse_settings
from ...training.metrics.metric_table import figures
from .declaration import Run, Study
from .devices import cores, least_used, visible_gpus
from .folder import open_folder
from .worker import finished

WORKER = "trbext.studies.compare.worker"
POLL_SECONDS = 0.2
GRACE_SECONDS = 120  # for a run to end its step and write a checkpoint


@dataclass
class _Worker:
    run: Run
    seed: int
    folder: Path
    process: subprocess.Popen[bytes]
    started: float
    first_step: int  # from which it continued
    task: TaskID
    gpu: str | None  # the only one it sees; None = it sees what the study sees

    @property
    def name(self) -> str:
        return f"{self.run.label}, seed {self.seed}"


def run_study(study: Study, declared: dict[str, Any], console: Console) -> list[str]:
    """Trains the runs of a study that are not finished.

    Args:
        study: The checked declaration.
        declared: The contents of its file.
        console: Where to show progress.

    Returns:
        A line for each run that failed.

    Raises:
        UsageError: The folder is another study's, another process trains in it, or a run cannot start.
        Interrupted: Ctrl-C or SIGTERM; runs that had begun have written a checkpoint.
    """
    if not any(finished(study.run_folder(run, seed)) for run in study.runs for seed in study.seeds):
        check_inputs(study)
    try:
        open_folder(study, declared)
        with FileLock(study.folder / "study.lock", timeout=0), _signals() as stop:
            return _Runner(study, console, stop).all()
    except Timeout:
        raise UsageError(f"another trb compare is at work in {study.folder}") from None


def check_inputs(study: Study) -> None:
    """Checks the inputs of every run before the study has a folder.

    Raises:
        UsageError: A run would end at its start.
    """
    for index, run in enumerate(study.runs):
        arguments, config, _ = parse_settings(study.settings(run, study.seeds[0]))
        try:
            load_inputs(arguments, config)
        except (UsageError, ValueError, OSError) as error:
            where = "" if index == 0 else f"run {run.label!r}: "
            raise UsageError(f"{where}{str(error).strip()}") from error


class _Runner:
    def __init__(self, study: Study, console: Console, stop: list[int]) -> None:
        self.study, self.console, self.stop = study, console, stop
        every = [(run, seed) for seed in study.seeds for run in study.runs]
        self.waiting = [(run, seed) for run, seed in every if not finished(study.run_folder(run, seed))]
        self.total = len(every)
        self.failures: list[str] = []
        self.workers: list[_Worker] = []
        self.gpus = visible_gpus()
        self.began = time.monotonic()
        self.steps_done = 0  # in this session, of workers that have ended
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),  # with the labels of runs
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def all(self) -> list[str]:
        with self.progress:
            done = self.total - len(self.waiting)
            self.overall = self.progress.add_task("runs", total=self.total, completed=done, note="")
            try:
                while (self.waiting or self.workers) and not self.stop:
                    while self.waiting and len(self.workers) < self.study.processes:
                        self._start(*self.waiting.pop(0))
                    time.sleep(POLL_SECONDS)
                    for worker in list(self.workers):
                        self._look_at(worker)
            finally:
                self._end_workers()
        if self.stop:
            left = self.total - self._finished()
            raise Interrupted(
                f"stopped with {left} of {self.total} runs to go; the same command continues from their checkpoints"
            )
        return self.failures

    def _start(self, run: Run, seed: int) -> None:
        study, folder = self.study, self.study.run_folder(run, seed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        settings = folder.parent / f"{folder.name}.yaml"
        settings.write_text(dump_yaml(study.settings(run, seed), sort_keys=True), encoding="utf-8")
        threads = str(study.threads or max(1, cores() // study.processes))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment.setdefault("TOKENIZERS_PARALLELISM", "false")
        gpu = least_used(self.gpus, [worker.gpu for worker in self.workers])
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        # A run imports what the study would: the same trbext, and a user's modules from the same folders.
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"}
        command = [sys.executable, "-m", WORKER, str(settings)]
        with (folder.parent / f"{folder.name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, "--keep-model"] if study.keep_models else command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is the study's to hand on, once
            )
        step = _last_line(folder / "metrics.jsonl").get("step", 0)
        task = self.progress.add_task(f"  {run.label}, seed {seed}", total=study.max_steps, completed=step, note="")
        self.workers.append(_Worker(run, seed, folder, process, time.monotonic(), step, task, gpu))

    def _look_at(self, worker: _Worker) -> None:
        line = _last_line(worker.folder / "metrics.jsonl")
        note = _figures(line)
        self.progress.update(worker.task, completed=line.get("step", worker.first_step), note=note)
        code = worker.process.poll()
        self.progress.update(self.overall, note=f"about {_duration(self._seconds_left())} left")
        if code is None:
            return
        self.workers.remove(worker)
        self.progress.remove_task(worker.task)
        self.steps_done += max(0, line.get("step", 0) - worker.first_step)
        if code == 0:
            self._say(worker, f"finished in {_duration(time.monotonic() - worker.started)}")
            self.progress.advance(self.overall)
            return
        log = worker.folder.parent / f"{worker.folder.name}.log"
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["no output"]
        if code == USAGE_ERROR:  # the next one would say the same
            raise UsageError(f"{worker.name}: {last[0].removeprefix('trb: ')}")
        reason = f"signal {-code}" if code < 0 else "interrupted" if code == INTERRUPTED else f"exit code {code}"
        self.failures.append(f"{worker.name}: {reason}: {last[0]} (see {log})")
        self._say(worker, f"FAILED, {reason}: {last[0]}")

    def _say(self, worker: _Worker, what: str) -> None:
        left = f", about {_duration(self._seconds_left())} left" if self.waiting or self.workers else ""
        self.progress.console.print(
            f"[{self._finished()}/{self.total}] {worker.name} {what}{left}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )

    def _finished(self) -> int:
        study = self.study
        return sum(finished(study.run_folder(run, seed)) for seed in study.seeds for run in study.runs)

    def _seconds_left(self) -> float | None:
        """Estimates the time from the optimizer steps made in this session and those to go; None before the first."""
        steps = {id(w): _last_line(w.folder / "metrics.jsonl").get("step", w.first_step) for w in self.workers}
        done = self.steps_done + sum(max(0, steps[id(w)] - w.first_step) for w in self.workers)
        left = len(self.waiting) * self.study.max_steps + sum(self.study.max_steps - s for s in steps.values())
        return (time.monotonic() - self.began) * left / done if done else None

    def _end_workers(self) -> None:
        for worker in self.workers:
            with suppress(ProcessLookupError):
                worker.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in self.workers:
            while worker.process.poll() is None:
                if time.monotonic() > deadline or len(self.stop) > 1:
                    worker.process.kill()
                time.sleep(POLL_SECONDS)
        self.workers.clear()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects the signals to stop that come inside, in place of their usual effect."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(metrics: Path) -> dict[str, Any]:
    """Returns the last whole line of a metrics.jsonl that is being written; {} before there is one."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def _figures(line: dict[str, Any]) -> str:
    return figures(line, ("trb/reverse_kl", "eval_pass@1"))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
