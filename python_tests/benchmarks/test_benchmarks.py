"""Tests benchmarks/: the competitors are correct, the checks refuse wrong ones, and the command writes its table."""

from __future__ import annotations

import csv
import importlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import trbext
from benchmarks.harness import timing
from benchmarks.harness.correctness import Truth, WrongAnswer
from benchmarks.harness.rows import language_model_rows
from benchmarks.operators import cpu_results, peers, top_k
from benchmarks.operators.decoding import real_rows, time_decoding
from trbext import reference

ROOT = Path(__file__).resolve().parents[2]
ROWS, VOCAB, LOOSE = 6, 1500, 1e3
MOMENTS = peers.Moments(ROWS, VOCAB)
BISECTION_ERROR = 2.0**-15  # of 16 evaluations, the first one at beta = 1


def logits(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    student, teacher = language_model_rows(ROWS, VOCAB)
    return student.to(dtype), teacher.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("epsilon", [1e-3, 0.02, 0.2, LOOSE])
@pytest.mark.parametrize(
    ("solve", "resolution"),
    [
        (peers.eager_newton(MOMENTS), 0.0),
        (peers.eager_newton(MOMENTS, stop=True), 0.0),
        (peers.eager_bisection(MOMENTS, 16), BISECTION_ERROR),
        (peers.eager_bisection(MOMENTS, 50), 0.0),
        (peers.brentq, 0.0),
    ],
    ids=["Newton 10", "Newton stop", "bisection 16", "bisection 50", "brentq"],
)
def test_every_peer_finds_the_reference_beta(
    solve: peers.Solver, resolution: float, epsilon: float, dtype: torch.dtype
) -> None:
    student, teacher = logits(dtype)
    exact = reference.solve(student, teacher, epsilon)
    for _ in range(2):  # buffers that a first call has filled must not appear in the second
        beta, kl = solve(student, teacher, epsilon)
        assert torch.all((beta - exact.beta).abs() <= 1e-3 * exact.beta + resolution)
        assert torch.all((kl - exact.kl).abs() <= 1e-3 * exact.kl + 3 * resolution * exact.kl / exact.beta)
        assert (beta == 1).all() == (epsilon == LOOSE)


@pytest.mark.nightly
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a C++ compiler")
def test_the_compiled_newton_finds_the_reference_beta() -> None:
    student, teacher = logits(torch.float32)
    beta, kl = peers.compiled_newton(iterations=6)(student, teacher, 0.02)
    exact = reference.solve(student, teacher, 0.02)
    torch.testing.assert_close(beta.double(), exact.beta, rtol=1e-3, atol=0)
    torch.testing.assert_close(kl.double(), exact.kl, rtol=1e-3, atol=0)


@pytest.mark.parametrize("vocab", [7, 1024])
def test_the_read_does_not_change_its_inputs(vocab: int) -> None:
    student, teacher = language_model_rows(3, vocab)
    copies = student.clone(), teacher.clone()
    peers.read(student, teacher)()
    assert torch.equal(student, copies[0])
    assert torch.equal(teacher, copies[1])


def test_a_wrong_answer_is_refused() -> None:
    student, teacher = logits(torch.float32)
    truth = Truth.find(student, teacher, 0.02)
    truth.check("right", truth.beta, truth.kl)
    wrong = truth.beta.clone()
    wrong[-1] *= 1.002
    with pytest.raises(WrongAnswer, match="off: beta"):
        truth.check("off", wrong, truth.kl)
    with pytest.raises(WrongAnswer, match="off: KL"):
        truth.check("off", truth.beta, truth.kl * 0.998)
    with pytest.raises(WrongAnswer, match="off: beta"):
        truth.check("off", truth.beta * torch.nan, truth.kl)
    log_probs = trbext.blend(student, teacher, 0.02).log_probs
    truth.check_log_probs("right", log_probs)
    with pytest.raises(WrongAnswer, match="off: log mu"):
        truth.check_log_probs("off", log_probs + 1e-2)
    drawn = trbext.sample(student, teacher, 0.02)
    truth.check_tokens("right", drawn.token, drawn.log_prob)
    with pytest.raises(WrongAnswer, match="off: log mu of the token"):
        truth.check_tokens("off", drawn.token, drawn.log_prob - 1e-2)


def test_a_wrong_operator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def loose(student: Tensor, teacher: Tensor, epsilon: float) -> reference.Solution:
        return solve(student, teacher, epsilon * 1.01)

    solve = trbext.solve
    monkeypatch.setattr(trbext, "solve", loose)
    with pytest.raises(WrongAnswer, match=r"trbext\.solve: beta"):
        Truth.find(*logits(torch.float32), 0.02)


def test_timing_checks_first_interleaves_and_spares_the_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = 0.0, []

    def lasting(name: str, seconds: float) -> timing.Method:
        def call() -> str:
            nonlocal clock
            clock += seconds
            calls.append(name)
            return name

        return timing.Method(name, call, lambda result: calls.append(f"check {result}"))

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock))
    methods = [lasting("fast", 0.01), lasting("slow", 1.0), lasting("endless", 30.0), lasting("quick", 0.01)]
    timing.time_interleaved(methods, lambda: calls.append("before"), repetitions=20, seconds=20.0)
    fast, slow, endless, quick = methods
    assert [len(method.seconds) for method in methods] == [20, 5, 0, 20]
    assert (fast.median, slow.median, endless.median) == pytest.approx((0.01, 1.0, None))
    assert endless.note == "left out: one call takes 30 s"
    assert calls[:6] == ["fast", "check fast", "fast", "slow", "check slow", "slow"]
    timed = calls[calls.index("before") :]
    assert timed[::2] == ["before"] * 45
    turns = "".join(name[0] for name in timed[1::2])
    assert "fff" not in turns  # at most the end of a turn and the start of the next
    assert "ff" in turns  # as the order changes from turn to turn
    turn = [turns[:at].count("f") for at, name in enumerate(turns) if name == "s"]  # one more if "f" came first
    assert turn == [pytest.approx(expected, abs=0.5) for expected in (3.5, 7.5, 11.5, 15.5, 19.5)]
    assert quick.note == ""


def record(method: str, seconds: float, *, rows: int = 64, dtype: str = "float32") -> cpu_results.Record:
    budget = "binding" if method in cpu_results.OPERATORS else "any"
    return cpu_results.Record(
        "synthetic", 151_936, rows, dtype, budget, 0.02, method, seconds, seconds, 3, None, None, None, None, ""
    )


def test_bars_are_ratios_of_medians_on_the_right_side_of_their_limits() -> None:
    records = [
        record("solve", 1.0),
        record("read", 0.25),
        record("Newton 10", 59.0),
        record("2 log_softmax", 4.0),
        record("sample", 1.2),
        record("blend", 4.0),
        record("fill", 1.0),
        record("solve", 2.0, rows=1),
        record("2 log_softmax", 1.0, rows=1),
    ]
    verdicts = {bar.text: (bar.ratio, bar.verdict) for bar in cpu_results.bars(records, None)}
    assert verdicts["Newton 10 / solve, N = 64 float32"] == (59, "missed")
    assert verdicts["2 log_softmax / solve, N = 64 float32"] == (4, "met")
    assert verdicts["solve / read, N = 64 float32"] == (4, "met")
    assert verdicts["stretch: solve / read, N = 64 float32"] == (4, "missed")
    assert verdicts["solve / 2 log_softmax, N = 1 float32, any V, worst at V = 151936"] == (2, "missed")
    assert verdicts["sample / solve, N = 64 float32"] == (1.2, "missed")
    assert verdicts["(blend - solve) / fill, N = 64 float32"] == (3, "met")
    assert verdicts["sample / solve, N = 64 bfloat16"] == (None, "not measured")
    assert len(verdicts) == len(cpu_results.bars(records, None))


def test_the_command_writes_csv_and_plot_from_the_root_of_a_checkout(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.operators.blend",
        "--quick",
        "--vocab",
        "256",
        "--output",
        str(tmp_path),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    assert "sample / solve, N = 64 float32: (<= 1.1) not measured" in done.stdout
    assert (tmp_path / "blend.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "blend.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(line["rows"], line["dtype"]) for line in lines} == {
        (rows, dtype) for rows in ("1", "4") for dtype in ("float32", "bfloat16")
    }
    timed = [line for line in lines if line["rows"] == "4" and line["dtype"] == "float32"]
    methods = set(cpu_results.METHODS) - {"Newton compiled"}  # --quick compiles nothing
    assert {line["method"] for line in timed} == methods
    assert all(float(line["median_s"]) >= float(line["fastest_s"]) > 0 for line in timed)
    assert all(line["cpu"] and line["isa"] and line["threads"] == "1" for line in lines)
    sweeps = {(line["method"], line["budget"]): line["sweeps_max"] for line in timed}
    assert sweeps["solve", "not binding"] == "1"
    assert sweeps["Newton 10", "any"] == ""


def test_folders_that_are_not_the_pair_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"recipes/smollm2_pruned\.py, but has no student/config\.json"):
        real_rows(tmp_path)


def test_real_rows_and_decoding_of_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on models of the same layout that cost nothing."""
    from python_tests.models.tiny_models import CHARACTERS, tiny_llama, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    for seed, name in enumerate(("student", "teacher")):
        tiny_llama(seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "prompts").mkdir()
    lines = (
        '{"prompt": [{"role": "user", "content": "1+1=?"}]}\n',
        '{"prompt": [{"role": "user", "content": "ab"}]}\n',
    )
    (tmp_path / "prompts" / "train.jsonl").write_text("".join(lines))
    student, teacher = real_rows(tmp_path, texts=2, new_tokens=4)
    assert student.shape == teacher.shape == (len(student), 4 + len(CHARACTERS))
    assert 5 + 2 + 2 <= len(student) <= 5 + 2 + 2 * 4
    assert student.dtype == torch.float32
    assert not torch.equal(student, teacher)

    def slow_sample(*arguments: Any, **options: Any) -> reference.Sample:
        time.sleep(0.02)
        return trbext.sample(*arguments, **options)

    monkeypatch.setattr(importlib.import_module("trbext.rollout.policies"), "sample", slow_sample)
    decoding = time_decoding(tmp_path, epsilon=0.02, batch=2, new_tokens=5, repetitions=2)
    assert 0 < decoding.steps <= 2 * 4  # rows may end early
    assert 0.02 <= decoding.operator < decoding.step  # the operator is part of the step
    with pytest.raises(ValueError, match="must hold at least 3 prompts, got 2"):
        time_decoding(tmp_path, epsilon=0.02, batch=3)


def test_top_k_teachers_are_checked_and_timed_beside_solve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--vocab", "1500", "--rows", "2", "--repetitions", "3", "--seconds", "0.1", "--dtype", "bfloat16"]
    assert top_k.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "sample, k = 64" in printed
    assert printed.count("not measured") == 2  # the bars hold at another vocabulary
    right = trbext.solve
    monkeypatch.setattr(trbext, "solve", lambda *args: right(*args)._replace(beta=torch.ones(2)))
    assert top_k.main(arguments) == 1
    assert "error: top-k: beta must be" in capsys.readouterr().err
