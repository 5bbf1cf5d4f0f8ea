"""Tests the fuzzer of the CUDA kernels: it passes on them, and finds what is planted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.cuda import ptx_rows
from python_tests.cuda.ptx_rows import PtxOperators
from python_tests.fuzz.kernel_rows import ELEMENTS, WIDEST, check
from python_tests.fuzz.random_rows import Batch, batch_of
from trbext.results import Sample

pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(ptx_rows.missing() is not None, reason=str(ptx_rows.missing())),
]


@pytest.fixture(scope="module")
def batch() -> Batch:
    found = batch_of(3, 0, WIDEST, ELEMENTS)
    few = slice(0, 32)
    return replace(
        found, student=found.student[few], teacher=found.teacher[few], epsilon=found.epsilon[few],
        uniform=found.uniform[few], family=found.family[few],
    )  # fmt: skip


def faults(batch: Batch) -> list[str]:
    return [name for name, where in check(batch).items() if where.any()]


def test_the_kernels_pass_and_wrong_answers_are_found(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    right = PtxOperators.sample
    answers: list[Sample] = []

    def kept(trb: PtxOperators, *args: Tensor, **options: Any) -> Sample:
        answers.append(right(trb, *args, **options))
        return answers[-1]

    monkeypatch.setattr(PtxOperators, "sample", kept)
    assert faults(batch) == []
    drawn = answers[0]
    for wrong, kind in (
        (drawn._replace(beta=(drawn.beta * 1.01).clamp(max=1)), "infeasible"),
        (drawn._replace(beta=drawn.beta * torch.where(drawn.beta < 1, 0.9, 1.0)), "not maximal"),
        (drawn._replace(kl=drawn.kl + 1e-3), "reported KL"),
        (drawn._replace(token=drawn.token - 1), "token of another cell"),
    ):
        monkeypatch.setattr(PtxOperators, "sample", lambda *_, wrong=wrong, **__: wrong)
        assert kind in faults(batch)
