"""Makes short launches of the CUDA kernels on the PTX interpreter that between them need all barriers but a few.

Each launch runs for a second or two. python_tests/cuda/barriers.tsv says which barriers each launch needs.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import trbext
from python_tests.cuda import ptx_rows
from python_tests.cuda.ptx_rows import PtxOperators
from python_tests.operators.row_families import families
from python_tests.operators.verify_calls import ordinary, ragged

pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(ptx_rows.missing() is not None, reason=str(ptx_rows.missing())),
]


def bfloat16(rows: int, vocab: int) -> tuple[Tensor, Tensor]:
    student, teacher = ordinary(rows, vocab)
    return student.bfloat16(), teacher.bfloat16()


@pytest.mark.parametrize("ranks", [1, 2])
def test_blocks_draw_from_one_row_after_another(ranks: int) -> None:
    """The first warp holds two chunks of 256 tokens, so that a draw from them has a choice of parts."""
    student, teacher = bfloat16(2, ranks * 8 * 256 + 3)
    uniform = torch.tensor([0.0, 0.5], dtype=torch.float64)
    trb = PtxOperators(90, ranks=ranks, clusters=1)
    drawn = trb.sample(student, teacher, 0.02, uniform=uniform)
    assert torch.equal(drawn.token, trbext.sample(student, teacher, 0.02, uniform=uniform).token)


def test_one_sweep_decides_a_row_and_others_take_many() -> None:
    """The lanes of a warp read the search that one of them writes, and one reads the logarithms that others write."""
    pairs = [families(600)[name] for name in ("peaked, disagreeing", "teacher's outlier, 15 nats")]
    student, teacher = (torch.stack([pair[i].float() for pair in pairs]).bfloat16() for i in (0, 1))
    for seed in (None, 0):
        trb = PtxOperators(90, clusters=1, seed=seed)
        solved = trb.solve(student.repeat(2, 1), teacher.repeat(2, 1), torch.tensor([0.02, 0.02, torch.inf, 0.0]))
        assert (solved.sweeps >= 3).tolist() == [True, True, False, False]
        assert solved.beta[2:].tolist() == [1.0, 0.0]


def test_blocks_judge_one_draft_after_another() -> None:
    """The first draft is at fault before its logits are read; the last, which mu gives less probability than the
    student does, is rejected, and a token of the residual is drawn."""
    student, teacher = bfloat16(3, 600)
    call = ragged(student, teacher, [1, 2], direct=0.0).but(
        draft_tokens=torch.tensor([-2, 0, (teacher - student)[2].argmin()]),
        accept_uniform=torch.tensor([0.0, 0.0, 1 - 2.0**-53], dtype=torch.float64),
    )
    got, expected = call.by(PtxOperators(90, ranks=2, clusters=1).verify), call.by(trbext.verify)
    assert (got.emitted.tolist(), got.accepted.tolist()) == ([-1, 2], [0, 1])
    assert torch.equal(got.tokens, expected.tokens)
    wide = call.by(PtxOperators(90, ranks=4, sections=1, clusters=1).verify)
    assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(wide, got, strict=True))


def test_a_row_in_double_precision_is_drawn_from_in_parts_of_parts() -> None:
    """The row has 33 chunks of 128 tokens: the first of the 32 parts that the draw begins with is two chunks."""
    student, teacher = ordinary(1, 32 * 128 + 1)
    student[0, 7] = -1e4
    uniform = torch.tensor([0.0], dtype=torch.float64)
    drawn = PtxOperators(90).sample(student, teacher, 0.02, uniform=uniform)
    assert torch.equal(drawn.token, trbext.sample(student, teacher, 0.02, uniform=uniform).token)


def test_the_lanes_of_a_warp_read_the_row_together_on_any_schedule() -> None:
    """The same holds for lanes that thread 0 has kept waiting while it read the row's arguments: no sector is requested
    twice."""
    student, teacher = bfloat16(2, 2048)
    for seed in range(4):
        trb = PtxOperators(90, clusters=2, seed=seed)
        trb.solve(student, teacher, 0.02)
        for name in ("student", "teacher"):
            traffic = trb.results[0].traffic[name]
            assert traffic.load_sectors == traffic.unique_sectors, f"{name}: sectors"
