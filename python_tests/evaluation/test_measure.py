"""Tests that an evaluation continues with what is missing, and judges what is on disk only."""

from __future__ import annotations

import functools
import itertools
import math
import operator
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_tests.models.tiny_models import prompts, tiny_llama, tiny_tokenizer
from trbext.evaluation.measure import Questions, measure
from trbext.evaluation.own_decoder import OwnDecoder
from trbext.evaluation.report import tokens_per_second
from trbext.evaluation.tasks import Completion, Task, Write
from trbext.evaluation.verifiers import numeric, verifier_digest


def questions(name: str, rows: int, samples: int, **changed: Any) -> Questions:
    fields = {"verifier": numeric, "max_completion_length": 6, "seed": 0, "template": {}, "settings": {"model": "M"}}
    return Questions(name=name, source=name, prompts=prompts(rows), samples=samples, **{**fields, **changed})


def encoded(benchmarks: Sequence[Questions]) -> dict[str, list[list[int]]]:
    return {benchmark.name: benchmark.encoded(tiny_tokenizer(), None) for benchmark in benchmarks}


class Numbers:
    """A decoder that answers with numbers, and fails after some."""

    name, in_flight = "numbers", 4

    def __init__(self, fails_after: int = 10**9) -> None:
        self.left, self.drawn = fails_after, 0

    def draw(self, tasks: Sequence[Task], missing: Callable[[Task], bool], write: Write) -> Iterator[Task]:
        for task in reversed(tasks):
            if missing(task):
                if self.left == 0:
                    raise ConnectionError("gone")
                self.left -= 1
                self.drawn += 1
                write(task, Completion(str(task.seed % 3), 1, True))
                yield task


def test_an_evaluation_continues_with_what_is_missing_and_with_more_samples(tmp_path: Path) -> None:
    outputs = {name: tmp_path / f"{name}.jsonl" for name in "AB"}
    two = [questions("A", 3, 4), questions("B", 2, 2)]
    whole = measure(two, encoded(two), Numbers(), None)
    with pytest.raises(ConnectionError):
        measure(two, encoded(two), Numbers(fails_after=7), outputs)
    second = Numbers()
    found = measure(two, encoded(two), second, outputs)
    assert second.drawn == 16 - 7
    for name, outcome in found.items():
        np.testing.assert_array_equal(outcome.correct, whole[name].correct)
        assert outcome.answers == whole[name].answers
    third = Numbers()
    six = [questions("A", 3, 6)]
    more = measure(six, encoded(six), third, {"A": outputs["A"]})
    assert third.drawn == 3 * 2
    np.testing.assert_array_equal(more["A"].correct[:, :4], found["A"].correct)
    with pytest.raises(ValueError, match=r"not of this evaluation.*decoder was 'numbers', and is 'trbext'"):
        measure(two, encoded(two), OwnDecoder(tiny_llama(), tiny_tokenizer(), batch_size=4), outputs)


def test_benchmarks_that_are_drawn_together_share_their_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr("trbext.evaluation.record.time.monotonic", lambda: float(next(clock)))
    outputs = {name: tmp_path / f"{name}.jsonl" for name in "ABC"}

    def speed(names: str, samples: int) -> float:
        several = [questions(name, 2, samples) for name in names]
        return tokens_per_second(measure(several, encoded(several), Numbers(), outputs))

    assert speed("ABC", 4) == 1.0  # a token in a second of this clock
    for names, samples in (("ABC", 4), ("ABC", 1), ("A", 4), ("B", 2)):
        assert speed(names, samples) == 1.0
    # Lines of trbext 0.1 as it was at first do not tell the tokens of their session.
    text = outputs["A"].read_text(encoding="utf-8")
    outputs["A"].write_text(re.sub(r'"session_tokens": \d+, ', "", text), encoding="utf-8")
    assert math.isnan(speed("A", 4))
    assert speed("A", 5) == 1.0


@pytest.mark.parametrize("answer", [lambda text: text.index("#"), lambda text: [text], lambda text: sys.exit()])
def test_an_answer_that_cannot_be_told_does_not_vote(
    answer: Callable[[str], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def verifier(prompt: Any, completion: str, row: Any) -> bool:
        return False

    verifier.answer = answer  # type: ignore[attr-defined]
    asked = [questions("A", 3, 2, verifier=verifier)]
    outcome = measure(asked, encoded(asked), Numbers(), {"A": tmp_path / "A.jsonl"})["A"]
    assert outcome.answers == [[None, None]] * 3
    assert outcome.verifier_errors == 0
    assert caplog.text.count("the verifier's `answer` failed on a completion of A, which does not vote") == 1


def test_the_completions_of_our_decoder_do_not_depend_on_the_batch_or_on_what_is_done(tmp_path: Path) -> None:
    def decoder(batch_size: int) -> OwnDecoder:
        return OwnDecoder(tiny_llama(), tiny_tokenizer(), batch_size=batch_size)

    def texts(found: dict[tuple[int, int], str]) -> Callable[..., bool]:
        def verifier(prompt: Any, completion: str, row: Any) -> bool:
            found[len(found), 0] = completion
            return True

        return verifier

    results = []
    for batch_size, path in ((3, tmp_path / "a.jsonl"), (12, None)):
        seen: dict[tuple[int, int], str] = {}
        asked = [questions("A", 4, 3, verifier=texts(seen))]
        measure(asked, encoded(asked), decoder(batch_size), None if path is None else {"A": path})
        results.append(list(seen.values()))
    assert results[0] == results[1]
    assert len(set(results[0])) > 6  # of twelve
    # Cut in the middle of a batch, it draws the same again.
    text = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join(text[:6]) + "\n")
    again: dict[tuple[int, int], str] = {}
    measure(
        [questions("A", 4, 3, verifier=texts(again))],
        encoded(asked),
        decoder(3),
        {"A": tmp_path / "a.jsonl"},
    )
    assert list(again.values()) == results[0][-len(again) :]


def test_a_verifier_that_was_mended_judges_again_what_is_drawn(tmp_path: Path) -> None:
    outputs = {"A": tmp_path / "A.jsonl"}
    decoder = Numbers()
    right = []
    for judgment in ("False", "True", "True", "False"):
        source = f"def verifier(prompt, completion, row):\n    asked.append(completion)\n    return {judgment}\n"
        (tmp_path / "mine.py").write_text(source)
        scope: dict[str, Any] = {"asked": []}
        exec(compile(source, str(tmp_path / "mine.py"), "exec"), scope)
        benchmark = [questions("A", 3, 2, verifier=scope["verifier"])]
        outcome = measure(benchmark, encoded(benchmark), decoder, outputs)["A"]
        right.append((len(scope["asked"]), int(outcome.correct.sum())))
    assert decoder.drawn == 6
    assert right == [(6, 0), (6, 6), (0, 6), (0, 0)]  # the first verifier's judgments count again


def test_a_verifier_without_a_file_has_no_digest() -> None:
    assert verifier_digest(operator.setitem) is None  # type: ignore[arg-type]
    assert verifier_digest(functools.partial(numeric)) == verifier_digest(numeric) is not None
