"""Tests the benchmarks of rollouts: they run, name the ratios that judge them, and model what they say."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.models import rollout_model
from benchmarks.rollout import compare as rollout
from benchmarks.rollout import teacher_states
from benchmarks.rollout.pairs import Prompts
from benchmarks.rollout.report import RolloutRecord, bars
from python_tests.rollout.rollout_cases import left_padded, tiny
from trbext.vocab import Alignment


@pytest.fixture
def tiny_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the random pair by models that are built in a moment."""

    def pair(batch: int) -> Prompts:
        models = [tiny(seed=seed, dtype=torch.float32) for seed in (1, 2)]
        prompts = left_padded(*([3, 4, 5 + row % 4] for row in range(batch)))
        return Prompts("random, 10x", *models, Alignment(11, (2,), (2,)), 0, *prompts)

    for module in (rollout, teacher_states):
        monkeypatch.setattr(module, "random_pair", pair)


def test_the_benchmark_of_rollouts_writes_what_it_measured(
    tiny_pair: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rollout, "NEW_TOKENS", {1: 6, 4: 6, 32: 6})
    words = ["--batches", "1", "4", "--epsilons", "0.01", "0.05", "--rounds", "1", "--output", str(tmp_path)]
    assert rollout.main(words) == 0
    printed = capsys.readouterr().out
    assert "auto / lockstep, batch 1, epsilon 0.05, teacher 10x the student" in printed
    rows = list(csv.DictReader((tmp_path / "rollout.csv").open()))
    assert len(rows) == 2 * 2 * 6
    assert {row["method"] for row in rows} == {"student", "lockstep", "k = 2", "k = 4", "k = 8", "auto"}
    assert all(float(row["tokens_per_s"]) > 0 for row in rows)
    assert (tmp_path / "rollout.png").stat().st_size > 10_000


def test_fixed_lengths_may_be_left_out(
    tiny_pair: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rollout, "NEW_TOKENS", {1: 6, 4: 6, 32: 6})
    words = ["--batches", "1", "--epsilons", "0.01", "--rounds", "1", "--lengths", "--output", str(tmp_path)]
    assert rollout.main(words) == 0
    assert "k = 4, the worst case: (<= 0.285714) not measured" in capsys.readouterr().out
    assert {row["method"] for row in csv.DictReader((tmp_path / "rollout.csv").open())} == {
        "student",
        "lockstep",
        "auto",
    }


def records(**rates: float) -> list[RolloutRecord]:
    names = {"lockstep": 10.0, "k = 2": 12.0, "k = 4": 16.0, "k = 8": 14.0, "student": 100.0} | rates
    made = RolloutRecord("random, 10x", 1, 0.05, "", 0.0, 0.0, 0.0, 3, 0.95, 0.25)
    return [
        replace(made, method=name, tokens_per_s=rate, over_lockstep=rate / 10.0, epsilon=epsilon)
        for epsilon in (0.01, 0.05)
        for name, rate in names.items()
    ]


def test_ratios_to_lockstep_are_those_of_one_round(tiny_pair: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slows down between rounds changes no ratio."""
    monkeypatch.setitem(rollout.NEW_TOKENS, 1, 8)
    pair = rollout.random_pair(1)
    decoder = rollout.Decoder(2, 0.05)
    for seed in range(3):
        decoder.call(pair, 1, seed)
    tokens = [int(made.mask.sum()) for made in decoder.rollouts]
    decoder.seconds = [1.0, 2.0, 4.0]
    lockstep = [count / seconds / 1.5 for count, seconds in zip(tokens, decoder.seconds, strict=True)]
    record = decoder.record(pair, 1, 0.05, "k = 2", lockstep)
    assert record.over_lockstep == pytest.approx(1.5)
    assert record.first_tokens_per_s == tokens[0]


def test_the_bars_are_ratios_to_lockstep_and_to_the_best_fixed_length() -> None:
    met = bars(records(auto=17.0))
    assert [bar.verdict for bar in met] == ["met"] * 4
    assert [bar.ratio for bar in met] == pytest.approx([1.7, 1.7, 17 / 16, 0.25])
    assert [bar.verdict for bar in bars(records(auto=9.0))] == ["missed"] * 3 + ["met"]
    assert [bar.verdict for bar in bars([])] == ["not measured"] * 4


def test_what_reuse_saves_is_measured(tiny_pair: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert teacher_states.main(["--batch", "3", "--new-tokens", "5", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    for part in teacher_states.PARTS:
        assert part in printed
    assert "with the states kept a step takes" in printed


def test_the_model_of_a_gpu_has_the_limits_it_must_have() -> None:
    student, teacher = rollout_model.PAIRS["1.7B <- 8B"]
    case = {"rows": 1, "epsilon": 0.01, "overhead": 0.0}
    # No draft is lockstep; without a student's cost and with all drafts accepted, k of them are k + 1 times as fast.
    assert rollout_model.gain(student, teacher, 0, **case) == pytest.approx(1.0)
    free = replace(student, parameters=0.0, layers=0)
    assert rollout_model.gain(free, teacher, 7, **{**case, "epsilon": 1e-12}) == pytest.approx(8.0, rel=1e-3)
    gains = [rollout_model.best(student, teacher, **{**case, "epsilon": eps})[1] for eps in (0.005, 0.05, 0.5)]
    assert gains == sorted(gains, reverse=True)
    # If arithmetic is the bound, the pass over k tokens costs k times one, and nothing is gained.
    crowded = {**case, "rows": 100_000, "epsilon": 0.5}
    assert rollout_model.best(student, replace(teacher, layers=0), **crowded)[1] < 1.01
