"""Draws and judges the completions of one model on one or several benchmarks, with a progress bar."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..data.prompt_checks import check_encodings
from ..data.prompts_digest import prompts_digest
from .outcome import Outcome
from .record import Record, Session
from .tasks import Decoder, Task, tasks_of
from .verifiers import Verifier, answers_of, check_verified, judge_one, verifier_digest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Questions:
    """A benchmark: its prompts, their judge, and how many completions each gets."""

    name: str
    source: str  # of the prompts, for messages
    prompts: Dataset
    verifier: Verifier
    samples: int
    max_completion_length: int
    seed: int
    template: Mapping[str, Any]  # options of the chat template
    settings: Mapping[str, Any]  # what else the completions depend on

    def encoded(self, tokenizer: Any, positions: int | None) -> list[list[int]]:
        """Encodes every prompt, and checks that it fits with its completion into the positions of the model.

        Returns:
            The token ids of each prompt.

        Raises:
            ValueError: One cannot be encoded, or does not fit.
        """
        limits = {"model": positions}
        length = self.max_completion_length
        return check_encodings(self.prompts, self.source, tokenizer, self.template, length, limits)

    def record_settings(self, decoder: str) -> dict[str, Any]:
        """Returns what the completions depend on, as the record holds it."""
        return {
            **self.settings,
            "max_completion_length": self.max_completion_length,
            "seed": self.seed,
            "decoder": decoder,
            "prompts_sha256": prompts_digest(self.prompts)[:16],
        }


def measure(
    benchmarks: Sequence[Questions],
    prompt_ids: Mapping[str, Sequence[Sequence[int]]],
    decoder: Decoder,
    outputs: Mapping[str, Path] | None,
) -> dict[str, Outcome]:
    """Draws what is missing of all benchmarks at once, and judges each completion after it was written.

    Args:
        benchmarks: What the model is asked.
        prompt_ids: The token ids of each benchmark's prompts (`Questions.encoded`).
        decoder: Of the model.
        outputs: The record of each benchmark; None keeps them in memory.

    Returns:
        The outcome of each benchmark.

    Raises:
        ValueError: A record is of another evaluation, or a verifier raised on every completion.
        OSError: A record cannot be read or written.
        EngineFailed: The decoder is an engine that failed.
    """
    records: dict[str, Record] = {}
    try:
        # 1. Open the records, and list what belongs to them.
        session = Session()
        for benchmark in benchmarks:
            path = None if outputs is None else outputs[benchmark.name]
            settings, digest = benchmark.record_settings(decoder.name), verifier_digest(benchmark.verifier)
            records[benchmark.name] = Record(path, settings, session, digest)
        tasks = [task for benchmark in benchmarks for task in _tasks(benchmark, prompt_ids[benchmark.name])]
        judging = _Judging(benchmarks, records)
        with _progress(benchmarks, tasks, records) as advance:
            # 2. Judge what an earlier evaluation had drawn only, or judged by a verifier that has changed since.
            for task in tasks:
                if records[task.benchmark].has(task):
                    judging.judge(task)
            # 3. Draw the rest, and judge each completion once it is on disk.
            for task in decoder.draw(
                tasks,
                lambda task: not records[task.benchmark].has(task),
                lambda task, completion: records[task.benchmark].write(task, completion),
            ):
                judging.judge(task)
                advance(task)
    finally:
        for record in records.values():
            record.close()
    # 4. Count what each benchmark's record holds.
    found = {}
    for benchmark in benchmarks:
        outcome = Outcome.of(
            records[benchmark.name],
            len(benchmark.prompts),
            benchmark.samples,
            votes=answers_of(benchmark.verifier) is not None,
        )
        check_verified(outcome.verifier_errors, outcome.correct.size, outcome.first_error)
        found[benchmark.name] = outcome
    return found


def _tasks(benchmark: Questions, prompt_ids: Sequence[Sequence[int]]) -> list[Task]:
    return tasks_of(
        benchmark.name,
        benchmark.prompts["prompt"],
        prompt_ids,
        samples=benchmark.samples,
        seed=benchmark.seed,
        max_new_tokens=benchmark.max_completion_length,
    )


class _Judging:
    """Judges completions that are on disk, and logs the first error of each verifier."""

    def __init__(self, benchmarks: Sequence[Questions], records: Mapping[str, Record]) -> None:
        self._benchmarks = {benchmark.name: benchmark for benchmark in benchmarks}
        self._records = records
        self._raised: set[tuple[str, str]] = set()

    def judge(self, task: Task) -> None:
        """Judges the completion of a task, unless it is judged."""
        record, benchmark = self._records[task.benchmark], self._benchmarks[task.benchmark]
        text = record.text(task)
        if text is None:
            return
        correct, error = judge_one(benchmark.prompts[task.prompt], text, benchmark.verifier)
        answers = answers_of(benchmark.verifier)
        answer = None
        if answers is not None and not correct and error is None:
            answer = self._answer(task.benchmark, answers, text)
        words = None if error is None else f"{type(error).__name__}: {error}"
        record.judge(task, correct, answer, words)
        if error is not None:
            words = "the verifier raised on a completion of %s, which counts as wrong: %.200r"
            self._warn(words, task.benchmark, text, error)

    def _answer(self, benchmark: str, answers: Callable[[str], str | None], text: str) -> str | None:
        """Returns what a completion answers; None if a user's `answer` fails."""
        try:
            found = answers(text)
            if not (found is None or isinstance(found, str)):
                raise TypeError(f"the answer must be a text or None, got {type(found).__name__}")
        except (Exception, SystemExit) as error:  # SystemExit: sys.exit would end the command as if it were done
            words = "the verifier's `answer` failed on a completion of %s, which does not vote: %.200r"
            self._warn(words, benchmark, text, error)
            return None
        return found

    def _warn(self, words: str, benchmark: str, text: str, error: BaseException) -> None:
        if (words, benchmark) not in self._raised:
            self._raised.add((words, benchmark))
            logger.warning(words, benchmark, text, exc_info=error)


@contextmanager
def _progress(
    benchmarks: Sequence[Questions], tasks: Sequence[Task], records: Mapping[str, Record]
) -> Iterator[Callable[[Task], None]]:
    """Shows a bar with the time left for each benchmark, on a terminal, if anything is left to draw."""
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}", markup=False),  # the name of a benchmark
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal or all(records[task.benchmark].has(task) for task in tasks),
    )
    shown = {}
    for benchmark in benchmarks:
        own = [task for task in tasks if task.benchmark == benchmark.name]
        done = sum(records[benchmark.name].has(task) for task in own)
        shown[benchmark.name] = bars.add_task(benchmark.name, total=len(own), completed=done)
    with bars:
        yield lambda task: bars.advance(shown[task.benchmark])
