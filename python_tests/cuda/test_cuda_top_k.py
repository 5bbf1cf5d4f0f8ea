"""The CUDA kernel over rows whose teacher is k tokens, as PTX, agrees with float64 and with the CPU operators."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import trbext
from python_tests.cuda import ptx_rows
from python_tests.cuda.ptx_rows import PtxOperators
from python_tests.operators.row_families import families
from python_tests.operators.top_k.test_verify_top_k import against_top_k
from python_tests.operators.top_k.top_k_teachers import rows_with_a_block_of_little_mass, top_k_of
from python_tests.operators.verify_calls import assert_follows_the_law, ordinary, ragged
from trbext import TopK, reference, reference_top_k

pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(ptx_rows.missing() is not None, reason=str(ptx_rows.missing())),
]

INF, NAN = float("inf"), float("nan")


def family_rows(vocab: int, every: int, dtype: torch.dtype) -> tuple[list[str], Tensor, Tensor]:
    pairs = [(name, pair) for name, pair in families(vocab).items() if "bfloat16" not in name][::every]
    student, logits = (torch.stack([pair[i] for _, pair in pairs]) for i in (0, 1))
    return [name for name, _ in pairs], student.to(dtype), logits


def close(got: Tensor, expected: Tensor, rtol: float, atol: float) -> bool:
    return torch.allclose(got.double(), expected.double(), rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize(
    ("kernels", "vocab", "every", "k", "dtype"),
    [
        (PtxOperators(90, approx_error=2.0**-22), 1100, 2, 20, torch.bfloat16),
        (PtxOperators(80), 1024, 3, 40, torch.float16),  # more tokens than lanes
        (PtxOperators(80), 17, 1, 5, torch.float32),
        (PtxOperators(90), 17000, 9, 20, torch.float32),  # two tiles
    ],
    ids=["bfloat16", "more tokens than lanes", "17", "two tiles"],
)
def test_families_meet_the_reference(kernels: PtxOperators, vocab: int, every: int, k: int, dtype: torch.dtype) -> None:
    names, student, logits = family_rows(vocab, every, dtype)
    top, count = top_k_of(logits, k, 0.8), len(names)
    epsilon = torch.tensor([1e-5, 1e-3, 0.05, 1.0, INF, 0.0]).repeat(count)[:count]
    uniform = torch.linspace(0.003, 0.997, count, dtype=torch.float64)
    drawn = kernels.sample(student, top, epsilon, uniform=uniform, temperature=0.8)
    exact = reference_top_k.solve(student, top, epsilon, temperature=0.8)
    x, y = reference_top_k.outcomes(student, top, 0.8)
    kl = torch.where(drawn.beta > 0, reference.behavior_kl(x, y, drawn.beta), 0.0)
    log_mu = reference_top_k.behavior_log_probs(student, top, drawn.beta, 0.8)
    for row, name in enumerate(names):
        assert kl[row] <= epsilon[row] * (1 + 1e-4) + 1e-7, name
        assert close(drawn.beta[row], exact.beta[row], 3e-4, 1e-9), name
        assert close(drawn.kl[row], kl[row], 2e-5, 4e-6), name
        upper, mu = log_mu[row].exp().cumsum(-1)[drawn.token[row]], log_mu[row, drawn.token[row]].exp()
        assert upper - mu - 3e-6 <= uniform[row] <= upper + 3e-6, name
        assert mu > 0, name
    of_student = (student.double() / 0.8).log_softmax(-1)
    implied = reference_top_k.implied_teacher(student, top, 0.8)
    for got, of in zip(drawn[1:4], (log_mu, of_student, implied), strict=True):
        assert close(got, of.gather(-1, drawn.token[:, None])[:, 0], 2e-6, 2e-5)
    blended = kernels.blend(student, top, epsilon, temperature=0.8)
    assert torch.equal(blended.beta, drawn.beta)
    assert close(blended.log_probs, log_mu, 2e-6, 2e-5)


@pytest.mark.parametrize("kernels", [PtxOperators(80), PtxOperators(90)], ids=["80", "90"])
def test_outcomes_that_lie_1e38_apart_are_solved_from_other_origins(kernels: PtxOperators) -> None:
    """The first row from the likeliest outcome, the second from it and then, without a budget, from the first."""
    lowest = torch.finfo(torch.float32).min
    student = torch.tensor([[lowest, lowest, 1.0, 0.0, -1.0], [0.0, 1.0, 2.0, -1e30, -INF]])
    teacher = torch.tensor([[0.0, 1.0, *[lowest] * 3], [*[-INF] * 3, 0.0, -INF]]).log_softmax(-1)
    top = TopK(torch.arange(5).expand(2, -1), teacher)
    got, exact = (solve(student, top, torch.tensor([0.5, 0.1])) for solve in (kernels.blend, reference_top_k.solve))
    assert close(got.beta, exact.beta, 3e-4, 0.0)
    assert close(got.log_probs, reference_top_k.behavior_log_probs(student, top, got.beta), 1e-6, 1e-5)


@pytest.mark.parametrize("kernels", [PtxOperators(80), PtxOperators(90)], ids=["80", "90"])
def test_a_block_of_subnormal_mass_is_passed_over_by_the_smallest_uniform(kernels: PtxOperators) -> None:
    student, top = rows_with_a_block_of_little_mass()
    uniform = torch.zeros(len(student), dtype=torch.float64)
    drawn = kernels.sample(student, top, torch.full((len(student),), 0.1), uniform=uniform)
    assert drawn.token[0] == 0
    assert ((drawn.token == 0) | (drawn.token == 1024)).all(), drawn.token
    assert drawn.kl.isfinite().all()


def outcome(trb: PtxOperators, student: Tensor, top: TopK, epsilon: Tensor, uniform: Tensor) -> list[Tensor]:
    return [
        *trb.sample(student, top, epsilon, uniform=uniform),
        *trb.blend(student, top, epsilon),
        *trb.solve(student, top, epsilon),
    ]


def same(got: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(got, expected, strict=True))


def edge_rows() -> tuple[Tensor, TopK, Tensor, Tensor]:
    """Returns ordinary rows at both ends, and a row of every edge between them."""
    vocab, rows = 70, 26
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(rows, vocab, generator=generator) * 2
    ids, log_probs = top_k_of(student + torch.randn(rows, vocab, generator=generator), 6)
    epsilon, uniform = torch.full((rows,), 0.05), torch.linspace(0.02, 0.98, rows, dtype=torch.float64)
    ids[1, 2], ids[2, 5], ids[3, 4] = -2, vocab, ids[3, 1]
    log_probs[4, 3], log_probs[5, 0], log_probs[6, 1] = NAN, INF, 0.0
    student[7, 69], student[8, 12], student[9, int(ids[9, 2])], student[10, int(ids[10, 0])] = NAN, INF, NAN, INF
    student[11] = -INF
    epsilon[12:16] = torch.tensor([-1.0, NAN, 0.0, INF])
    uniform[16:18] = torch.tensor([1.0, NAN])
    ids[18, 1:], log_probs[18, 1:] = -1, NAN  # one token
    ids[19] = -1  # none
    log_probs[20, 2] = -INF
    log_probs[21] += 1e-6 - log_probs[21].double().logsumexp(-1).float()  # the rest is lost in rounding
    student[22, ids[22]] = -INF  # the student has the rest only
    student[23] = torch.full((vocab,), -INF).scatter(0, ids[23], 1.0)  # and here none of it
    student[24, int(ids[24, 3])] += 700.0  # so sure that the rest has no float32
    return student, TopK(ids, log_probs), epsilon, uniform


def test_every_edge_is_that_of_the_cpu() -> None:
    kernels = PtxOperators(90)
    student, top, epsilon, uniform = edge_rows()
    drawn = kernels.sample(student, top, epsilon, uniform=uniform)
    blended = kernels.blend(student, top, epsilon)
    cpu = trbext.sample(student, top, epsilon, uniform=uniform)
    assert torch.equal(drawn.token, cpu.token)
    faults = [*range(1, 14), 16, 17]
    assert (drawn.token == -1).nonzero()[:, 0].tolist() == faults
    for name, got, expected in zip(drawn._fields[1:], drawn[1:], cpu[1:], strict=True):
        assert close(got, expected, 3e-6, 1e-5), name
    assert blended.beta.isnan().nonzero()[:, 0].tolist() == faults[:-2]
    assert close(blended.log_probs, trbext.blend(student, top, epsilon).log_probs, 3e-6, 2e-5)


def test_a_row_is_the_same_to_the_bit_in_any_batch_layout_and_schedule() -> None:
    student, top, epsilon, uniform = edge_rows()
    rows = torch.tensor([0, 3, 18, 20, 25])
    student, epsilon, uniform = student[rows].bfloat16(), epsilon[rows], uniform[rows]
    top = TopK(*(values[rows] for values in top))
    trb = PtxOperators(90)
    expected = outcome(trb, student, top, epsilon, uniform)
    wide = torch.full((5, 2 * 70 + 3), NAN, dtype=torch.bfloat16)
    wide[:, 1:141:2] = student
    columns = TopK(top.ids.int().t().contiguous().t(), top.log_probs.t().contiguous().t())
    assert same(outcome(trb, wide[:, 1:141:2], columns, epsilon, uniform), expected)
    order = torch.tensor([4, 1, 0, 3, 2])
    for seed in (0, 1):
        shuffled = dataclasses.replace(trb, seed=seed, clusters=2, results=[])  # a block solves several rows
        permuted = outcome(
            shuffled, student[order], TopK(*(values[order] for values in top)), epsilon[order], uniform[order]
        )
        assert same([values[order.argsort()] for values in permuted], expected), seed


def test_logits_are_read_once_and_a_block_and_the_listed_ones_again() -> None:
    student, logits = ordinary(2, 16384, seed=1)
    trb = PtxOperators(90)
    trb.sample(student.bfloat16(), top_k_of(logits, 20), 0.05, uniform=torch.tensor([0.2, 0.9], dtype=torch.float64))
    traffic = trb.results[-1].traffic["student"]
    assert traffic.unique_bytes_loaded == 2 * 2 * 16384
    assert traffic.widths[16] * 16 == 2 * 2 * 16384
    assert traffic.bytes_loaded < 1.3 * traffic.unique_bytes_loaded


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_every_decision_of_verify_is_that_of_the_implied_teacher(kind: int) -> None:
    trb = PtxOperators(90 if kind else 80, clusters=5 if kind == 2 else None)  # 5: a block solves several rows
    epsilon, temperature = torch.tensor([0.0, 1e-3, 0.1, 1.0, INF]), torch.tensor([1.0, 0.6, 1.7, 1.0, 0.8])
    student, logits = ordinary(16, 1100, seed=kind, spread=2.0)
    call = ragged(student, logits, [3] * 5, seed=kind, epsilon=epsilon, temperature=temperature, kind=kind, padding=1)
    call = call.but(accept_uniform=call.accept_uniform**0.25)  # most drafts are rejected
    top_k, dense = against_top_k(call, 20)
    got, cpu = top_k.by(trb.verify), top_k.by(trbext.verify)
    assert_follows_the_law(dense, got)
    for exact in ("tokens", "emitted", "accepted"):
        assert torch.equal(getattr(got, exact), getattr(cpu, exact)), exact
    assert (got.accepted < got.emitted).any()
    assert close(got.kl, cpu.kl, 2e-5, 4e-6)
    assert close(got.log_probs, cpu.log_probs, 3e-6, 2e-5)
    teacher = TopK(top_k.teacher_logits.ids.clone(), top_k.teacher_logits.log_probs)
    teacher.ids[0, 1] = teacher.ids[0, 0]
    faulty = top_k.but(teacher_logits=teacher).by(trb.verify)
    assert faulty.emitted[0] == -1
    assert torch.equal(faulty.tokens[1:], got.tokens[1:])
