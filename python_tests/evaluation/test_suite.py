"""Tests suites of benchmarks: what their files may hold, and how checkpoints are compared."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from trbext.cli import main as trb
from trbext.data.demo_models import MODELS
from trbext.data.prompts import load_prompts
from trbext.evaluation.outcome import Outcome
from trbext.evaluation.page import write_page
from trbext.evaluation.report import Report
from trbext.evaluation.suite import Suite

DEMO = "benchmarks: {easy: {prompts: 'demo:eval', verifier: demo, samples: 2}, hard: {prompts: 'demo', verifier: demo}}"


def written(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "must hold fields and values, got list"),
        ("a: {b", "is not YAML"),
        ("temperature: 1", "fields of a suite are benchmarks, system_prompt, .*, got 'temperature'"),
        ("benchmarks: []", "benchmarks must map names to benchmarks"),
        ("benchmarks: {A: 3}", "benchmark A must hold fields and values, got 3"),
        ("benchmarks: {A: {n: 3}}", "fields of benchmark A are prompts, samples, .*, got 'n'"),
        ("benchmarks: {mean: {prompts: demo}}", "a benchmark must have another name than 'mean'"),
        (
            "benchmarks: {A: {prompts: demo, verifier: }}",
            "verifier of benchmark A must be text, got null: leave its line",
        ),
        ("benchmarks: {1: {prompts: demo}, '1': {prompts: demo}}", "benchmarks must have different names, got 1, '1'"),
        ("benchmarks: {/a/b: {prompts: demo}}", "the name of a benchmark must be that of a file, got '/a/b'"),
        ("benchmarks: {../a: {prompts: demo}}", "the name of a benchmark must be that of a file, got '../a'"),
        ("benchmarks: {'': {prompts: demo}}", "the name of a benchmark must be that of a file, got ''"),
        (f"benchmarks: {{{'a' * 201}: {{prompts: demo}}}}", "the name of a benchmark must be that of a file, got 'aa"),
        ("benchmarks: {A: {prompts: }}", "prompts of benchmark A must be text, got null"),
        ("benchmarks: {A: {samples: 3}}", "benchmark A needs prompts"),
        ("benchmarks: {A: {prompts: demo, samples: 0}}", "samples of A must be a whole number of at least 1, got 0"),
        (
            "benchmarks: {A: {prompts: demo, samples: true}}",
            "samples of A must be a whole number of at least 1, got True",
        ),
        ("benchmarks: {A: {prompts: 2026}}", "prompts of benchmark A is text, which YAML reads as 2026: quote it"),
        ("benchmarks: {A: {prompts: demo, verifier: [math]}}", r"verifier of benchmark A must be text, got \['math'\]"),
        (DEMO + "\nsystem_prompt: yes", "system_prompt of a suite is text, which YAML reads as True: quote it"),
        (DEMO + "\nchat_template_kwargs: 3", "chat_template_kwargs must be a mapping, got 3"),
        (DEMO + "\nmax_completion_length: 1.5", "max_completion_length must be a whole number"),
    ],
)
def test_a_suite_that_cannot_be_read_says_why(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        Suite.read(written(tmp_path, text))


def test_checkpoints_are_compared_by_the_mean_of_the_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = written(tmp_path, DEMO + "\nmax_completion_length: 32")
    words = ["eval", "demo:student", "demo:teacher", "--suite", str(suite), "--limit", "12"]
    assert trb([*words, "--output", str(tmp_path / "pass")]) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "pass" / "pass_at_1.json").read_text())
    assert found["demo:teacher"]["mean"] == (found["demo:teacher"]["easy"] + found["demo:teacher"]["hard"]) / 2 > 0.7
    assert found["demo:student"]["mean"] < 0.2
    out = " ".join(out.split())
    assert "best by the suite mean: demo:teacher, " in out
    assert "chosen and measured on the same completions" in out
    assert "no honest choice: a benchmark has one completion per prompt" in out
    assert "demo:teacher is better than demo:student by " in out
    page = (tmp_path / "pass" / "index.html").read_text()
    assert page.count("<svg") == 1
    assert "easy: 12 prompts x 2 samples" in page
    results = json.loads((tmp_path / "pass" / "results.json").read_text())
    assert set(results["checkpoints"]["demo:teacher"]["benchmarks"]["easy"]) == {
        *("pass@1", "pass@2", "maj@2", "length", "cut")
    }
    assert "12 prompts x 2 samples" in out
    assert "12 prompts x 1 samples" in out
    lines = (tmp_path / "pass" / "demo-teacher" / "easy.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 2 * 24  # a completion and a judgment each
    assert trb([*words, "--benchmarks", "hard", "--output", str(tmp_path / "one")]) == 0
    assert list(json.loads((tmp_path / "one" / "pass_at_1.json").read_text())["demo:student"]) == ["hard", "mean"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo:student", "--suite", "SUITE", "--benchmarks", "medium"], "benchmarks are easy, hard, got 'medium'"),
        (["demo:student", "--suite", "nowhere.yaml"], "No such file"),
        (["demo:student", "demo:teacher", "--prompts", "demo", "--verifier", "demo"], "several models need --suite"),
        (["demo:student", "--suite", "SUITE", "--prompts", "demo"], "--prompts is the suite's to say: leave it out"),
        (["demo:student", "--suite", "SUITE", "--split", "test"], "--split is the suite's to say: leave it out"),
        (["demo:student", "--prompts", "demo", "--verifier", "demo", "--benchmarks", "easy"], "it needs --suite"),
        (["demo:student", "--verifier", "demo"], "--prompts is required without --suite"),
        (["demo:student", "--prompts", "demo:eval"], "--verifier is required without --suite"),
    ],
)
def test_usage_errors(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = str(written(tmp_path, DEMO))
    assert trb(["eval", *(suite if word == "SUITE" else word for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_the_length_of_the_command_line_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = written(tmp_path, DEMO + "\nmax_completion_length: 32")
    words = ["eval", "demo:teacher", "--suite", str(suite), "--limit", "4", "--max-completion-length", "2"]
    assert trb(words) == 0
    assert "cut off 100.0%" in capsys.readouterr().out


def test_a_checkpoint_without_answers_has_its_numbers_under_their_headings(tmp_path: Path) -> None:
    def outcome(answer: str | None) -> Outcome:
        correct = np.full((2, 2), answer is not None)
        return Outcome(
            correct=correct,
            tokens=np.full((2, 2), 5),
            finished=np.ones((2, 2), bool),
            answers=[[answer, answer]] * 2,
            verifier_errors=0,
            first_error=None,
            drawn={"": (1.0, 20)},
        )

    for order in (("7", None), (None, "7")):
        report = Report.of({f"model$_$ {n}": {"sums": outcome(answer)} for n, answer in enumerate(order)}, {})
        write_page(report, tmp_path)
        page = (tmp_path / "index.html").read_text(encoding="utf-8")
        assert "<!-- model$_$ 0 -->" in page  # a name, and no formula
        table = page[page.index("<h2>sums") :]
        heads, *models = [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]]
        assert heads[3] == "maj@2"
        assert [len(model) for model in models] == [len(heads)] * 2
        assert [model[3] != "" for model in models] == [answer is not None for answer in order]
        assert all(model[heads.index("length, mean (tokens)")].startswith("5.0") for model in models)


def test_each_prompt_is_encoded_once_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    call = PreTrainedTokenizerBase.__call__

    def counted(self: PreTrainedTokenizerBase, text: Any, *arguments: Any, **named: Any) -> Any:
        encoded.extend([text] if isinstance(text, str) else text)
        return call(self, text, *arguments, **named)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", counted)
    benchmark = "benchmarks: {a: {prompts: 'demo:eval', verifier: demo, samples: 3}}"
    suite = written(tmp_path, f"{benchmark}\nmax_completion_length: 9")
    assert trb(["eval", "demo:student", "--suite", str(suite), "--limit", "5"]) == 0
    assert sorted(encoded) == sorted(load_prompts("demo:eval", limit=5)["prompt"])


def test_all_models_and_records_are_looked_at_before_one_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trbext.evaluation.suite.measure", lambda *_: pytest.fail("a model was measured"))
    suite = written(tmp_path, DEMO)
    record = tmp_path / "out" / "demo-teacher" / "hard.jsonl"
    record.parent.mkdir(parents=True)
    record.write_text('{"settings": {"prompts": "other"}}\n')
    words = ["--suite", str(suite), "--limit", "2"]
    for more, message in (
        (["./none"], "model: there is no folder ./none"),
        (
            ["demo:teacher", "--output", str(tmp_path / "out")],
            "hard.jsonl exists and is not of this evaluation",
        ),
    ):
        assert trb(["eval", "demo:student", *more, *words]) == 2
        assert message in capsys.readouterr().err


def test_each_model_has_a_folder_of_records_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = written(tmp_path, "benchmarks: {'[b]': {prompts: 'demo:eval', verifier: demo}}\nmax_completion_length: 2")
    long = Path("b" * 120, "c" * 120)
    for folder in (Path("in/m/a"), Path("in/m--a"), Path("m/a"), Path("in") / long):
        shutil.copytree(MODELS / "student", folder)
    monkeypatch.chdir("in")
    models = ["m/a", "m--a", "m/a/", "./m/a", "../m/a", str(long)]
    words = ["--suite", str(suite), "--limit", "2", "--output", "out"]
    assert trb(["eval", *models, *words]) == 0
    assert "[b]" in capsys.readouterr().out.split("pass@1 with")[1]
    records = {path.parent.name: json.loads(path.read_text().split("\n")[0]) for path in Path("out").glob("*/*.jsonl")}
    assert {found["settings"]["model"] for found in records.values()} == {"m/a", "m--a", "../m/a", str(long)}
    assert len(records) == 4
    written_at = {path: path.read_bytes() for path in Path("out").glob("*/*.jsonl")}
    for model in models:
        assert trb(["eval", model, *words]) == 0
    assert written_at == {path: path.read_bytes() for path in Path("out").glob("*/*.jsonl")}
    assert trb(["eval", "m/a", str(Path("m/a").absolute()), *words]) == 0
    assert len(list(Path("out").glob("*/*.jsonl"))) == 5
    # A path from the root has no folder that one from here could have.
    shutil.copytree(MODELS / "student", Path(*Path("m/a").absolute().parts[1:]))
    assert trb(["eval", *(str(Path("m/a").absolute())[cut:] for cut in (0, 1)), *words]) == 0
    assert len(list(Path("out").glob("*/*.jsonl"))) == 6
