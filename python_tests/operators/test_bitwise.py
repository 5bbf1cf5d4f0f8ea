"""A row's result is bitwise the same by itself, in any batch, in any order, strided or not, for any number of
threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import trbext
from python_tests.operators.devices import Operators
from python_tests.operators.row_families import families


@pytest.mark.parametrize("vocab", [17, 5000])
def test_a_row_does_not_depend_on_its_batch(trb: Operators, vocab: int, threads: None) -> None:
    pairs = [pair for name, pair in families(vocab).items() if "bfloat16" not in name]
    student, teacher = (torch.stack([pair[i] for pair in pairs]) for i in (0, 1))
    rows = len(pairs)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(rows, dtype=torch.float64, generator=generator)
    epsilon = torch.rand(rows, generator=generator) * 0.2

    def outcome(student: Tensor, teacher: Tensor, epsilon: Tensor, uniform: Tensor) -> list[Tensor]:
        return [
            *trb.blend(student, teacher, epsilon),
            *trb.sample(student, teacher, epsilon, uniform=uniform),
            trb.solve(student, teacher, epsilon).sweeps,
        ]

    def equal(got: list[Tensor], expected: list[Tensor]) -> bool:
        return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(got, expected, strict=True))

    torch.set_num_threads(2)
    expected = outcome(student, teacher, epsilon, uniform)

    order = torch.randperm(rows, generator=generator)
    permuted = outcome(student[order], teacher[order], epsilon[order], uniform[order])
    assert equal([values[order.argsort()] for values in permuted], expected)

    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert equal(outcome(student, teacher, epsilon, uniform), expected), count
        # One row: with two threads its blocks are divided between them, with one thread they are not.
        for row in range(rows):
            one = slice(row, row + 1)
            alone = outcome(student[one], teacher[one], epsilon[one], uniform[one])
            assert equal(alone, [values[one] for values in expected]), (count, row)

    wide = torch.full((rows, 2 * vocab + 3), torch.nan)
    wide[:, 1 : 2 * vocab : 2] = student
    strided = wide[:, 1 : 2 * vocab : 2]
    assert strided.stride(1) == 2
    assert equal(outcome(strided, teacher.t().contiguous().t(), epsilon, uniform), expected)


@pytest.fixture
def flushed_only_here(threads: None) -> Iterator[None]:
    """Flushes subnormal numbers to 0 on this thread, but not on the threads of the pool, which exist already."""
    torch.set_num_threads(2)
    rows = torch.zeros(8, 4)
    trbext.solve(rows, rows, 0.1)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor flushes no subnormal numbers")
    yield
    torch.set_flush_denormal(False)


def test_a_row_does_not_depend_on_whether_its_thread_flushes_subnormal_numbers(flushed_only_here: None) -> None:
    student = torch.tensor([1.0, 2.0, 0.5, -1.0]).expand(8, -1)
    teacher = torch.tensor([0.5, 1.0, torch.finfo(torch.float32).min, 2.0]).expand(8, -1)
    solved = trbext.solve(student, teacher, 0.05)
    assert solved.kl.unique().numel() == 1
    assert solved.kl[0] == pytest.approx(0.05, rel=3e-4)
    for rows in (1, 8):  # of one row, the blocks are dealt to threads
        wide = student[:rows].repeat(1, 2000), teacher[:rows].repeat(1, 2000)
        uniform = torch.full((rows,), 0.3, dtype=torch.float64)
        offsets = torch.arange(rows + 1)
        drafts = torch.zeros(rows, dtype=torch.int64)

        def outcome(
            wide: tuple[Tensor, Tensor] = wide,
            uniform: Tensor = uniform,
            offsets: Tensor = offsets,
            drafts: Tensor = drafts,
        ) -> list[Tensor]:
            uniforms = {"accept_uniform": uniform, "draw_uniform": uniform}
            verified = trbext.verify(*wide, drafts, offsets, 0.05, **uniforms, width=1)
            return [*trbext.sample(*wide, 0.05, uniform=uniform), *trbext.blend(*wide, 0.05), *verified]

        torch.set_flush_denormal(True)
        flushed = outcome()
        torch.set_flush_denormal(False)
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(flushed, outcome(), strict=True))
