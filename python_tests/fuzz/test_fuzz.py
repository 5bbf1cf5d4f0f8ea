"""Tests the fuzzer itself: it passes on the operators, finds what is planted, and continues where a run ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import trbext
from python_tests.fuzz import __main__ as fuzz
from python_tests.fuzz.random_rows import batch_of
from python_tests.fuzz.tally import Tally
from trbext.results import Sample, Solution, Verification

FEW = ["--rows", "3000", "--seed", "5", "--widest", "3000"]


def test_random_rows_keep_every_promise(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(FEW) == 0
    printed = capsys.readouterr().out
    assert "seed 5" in printed
    assert ": 0 faults" in printed


def larger_beta(solution: Solution) -> Solution:
    return solution._replace(beta=(solution.beta * 1.001).clamp(max=1))


def smaller_beta(solution: Solution) -> Solution:
    return solution._replace(beta=solution.beta * torch.where(solution.beta < 1, 0.99, 1.0))


def next_token(drawn: Sample) -> Sample:
    return drawn._replace(token=drawn.token + 1)


def all_accepted(verified: Verification) -> Verification:
    return verified._replace(accepted=torch.ones_like(verified.accepted))


@pytest.mark.parametrize(
    ("function", "wrong", "kind"),
    [
        ("solve", larger_beta, "infeasible"),
        ("solve", smaller_beta, "not maximal"),
        ("sample", next_token, "token of another cell"),
        ("verify", all_accepted, "verify: verdict"),
    ],
)
def test_a_wrong_operator_is_found(
    function: str, wrong: Any, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = getattr(trbext, function)
    monkeypatch.setattr(trbext, function, lambda *args, **options: wrong(right(*args, **options)))
    assert fuzz.main(FEW) == 1
    (found,) = [line for line in capsys.readouterr().out.splitlines() if line.endswith(f"  {kind}")]
    assert int(found.split()[0].replace(",", "")) > 10


def test_a_run_continues_where_it_ended(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    assert fuzz.main([*FEW, "--state", str(state)]) == 0
    first = Tally.load(state)
    assert fuzz.main(["--rows", str(first.rows + 1), "--widest", "3000", "--state", str(state)]) == 0
    second = Tally.load(state)
    assert (second.seed, second.batches) == (5, first.batches + 1)
    with pytest.raises(SystemExit):
        fuzz.main(["--seed", "6", "--widest", "3000", "--state", str(state)])


def test_one_batch_is_not_kept_in_a_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fuzz.main([*FEW, "--batch", "3", "--state", str(tmp_path / "state.json")])
    assert "give one of the two" in capsys.readouterr().err
    assert not (tmp_path / "state.json").exists()


def test_a_batch_is_a_function_of_seed_and_number() -> None:
    first, again, other = (batch_of(5, number, 3000, 10_000) for number in (3, 3, 4))
    assert torch.equal(first.student.double().nan_to_num(), again.student.double().nan_to_num())
    assert first.family == again.family != other.family
