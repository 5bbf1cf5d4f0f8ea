"""Tests the operators on a top-k teacher against float64: they blend with the full teacher that its k tokens imply."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import trbext
from python_tests.operators.devices import Operators
from python_tests.operators.row_families import families
from python_tests.operators.top_k.top_k_teachers import rows_with_a_block_of_little_mass, teacher, top_k_of
from trbext import TopK, reference, reference_top_k

INF, NAN = float("inf"), float("nan")
EPSILONS = (0.0, 1e-5, 1e-3, 0.05, 1.0, INF)


def family_rows(vocab: int) -> tuple[list[str], Tensor, Tensor]:
    pairs = {name: pair for name, pair in families(vocab).items() if "bfloat16" not in name}
    student, logits = (torch.stack([pair[i] for pair in pairs.values()]) for i in (0, 1))
    return list(pairs), student, logits


@pytest.mark.parametrize("k", [1, 5, 9])
def test_the_reference_is_the_dense_one_on_the_teacher_that_the_k_tokens_imply(k: int) -> None:
    _, student, logits = family_rows(9)
    for temperature, epsilons in ((1.0, (1e-5, 0.05)), (0.6, (1.0, INF))):
        top = top_k_of(logits, k, temperature)
        implied = reference_top_k.implied_teacher(student, top, temperature)
        total = implied.logsumexp(-1)
        assert (total.abs() < 1e-6).all()
        listed = implied.gather(-1, top.ids)
        assert torch.allclose(listed.exp(), top.log_probs.double().exp(), atol=1e-6)
        for epsilon in epsilons:
            got = reference_top_k.blend(student, top, epsilon, temperature=temperature)
            dense = reference.blend(student, implied * temperature, epsilon, temperature=temperature)
            assert torch.allclose(got.kl, dense.kl, atol=1e-9), epsilon
            assert torch.allclose(got.log_probs.exp(), dense.log_probs.exp(), atol=1e-9), epsilon


def test_of_all_teachers_with_these_k_probabilities_the_implied_one_is_closest_to_the_student() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(40, generator=generator)
    top = top_k_of(torch.randn(40, generator=generator), 6)
    implied = reference_top_k.implied_teacher(student, top)
    log_student = student.double().log_softmax(-1)
    least = (implied.exp() * (implied - log_student)).sum()
    rest = torch.ones(40).scatter(0, top.ids, 0.0) > 0
    for _ in range(20):
        other = implied.clone()
        moved = other[rest] + 0.1 * torch.randn(34, generator=generator)
        other[rest] = moved.log_softmax(-1) + other[rest].logsumexp(-1)
        assert (other.exp() * (other - log_student)).sum() > least


@pytest.mark.parametrize(("vocab", "k"), [(2, 1), (17, 5), (1000, 20), (5000, 64)])
def test_kl_is_within_the_budget_and_uses_it(trb: Operators, vocab: int, k: int) -> None:
    names, student, logits = family_rows(vocab)
    top = top_k_of(logits, k)
    for epsilon in EPSILONS[1:]:
        got = trb.solve(student, top, epsilon)
        x, y = reference_top_k.outcomes(student, top)
        kl, expected = reference.behavior_kl(x, y, got.beta), reference.solve(x, y, epsilon).beta
        assert (got.sweeps == 1).all()
        for row, name in enumerate(names):
            case = f"{name}, V={vocab}, epsilon={epsilon}: {got.beta[row]} {expected[row]}"
            assert (0 if got.beta[row] == 0 else kl[row]) <= epsilon * (1 + 1e-4) + 1e-7, case
            assert math.isclose(got.kl[row], 0 if got.beta[row] == 0 else kl[row], rel_tol=2e-5, abs_tol=2e-6), case
            assert math.isclose(got.beta[row], expected[row], rel_tol=3e-4, abs_tol=1e-9), case


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_mu_and_draws_are_those_of_float64(trb: Operators, dtype: torch.dtype, temperature: float) -> None:
    """The uniforms of this seed lie in no cell's edge."""
    for vocab, k in ((9, 3), (1500, 20)):
        _, student, logits = family_rows(vocab)
        student, top = student.to(dtype), top_k_of(logits, k, temperature)
        uniform = torch.rand(len(student), dtype=torch.float64, generator=torch.Generator().manual_seed(vocab))
        for epsilon in (0.0, 1e-3, 0.2, INF):
            drawn = trb.sample(student, top, epsilon, uniform=uniform, temperature=temperature)
            log_mu = reference_top_k.behavior_log_probs(student, top, drawn.beta, temperature)
            token = drawn.token[:, None]
            assert torch.equal(drawn.token, reference.token_at(log_mu.exp(), uniform)), (vocab, epsilon)
            implied = reference_top_k.implied_teacher(student, top, temperature)
            log_student = (student.double() / temperature).log_softmax(-1)
            for got, of in zip(drawn[1:4], (log_mu, log_student, implied), strict=True):
                assert torch.allclose(got.double(), of.gather(-1, token)[:, 0], atol=2e-5, rtol=2e-6)
            blended = trb.blend(student, top, epsilon, temperature=temperature)
            assert torch.equal(blended.beta, drawn.beta)
            assert torch.equal(blended.kl, drawn.kl)
            assert torch.allclose(blended.log_probs.double(), log_mu, atol=2e-5, rtol=2e-6)


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, INF])
def test_k_tokens_that_are_the_whole_vocabulary_are_the_dense_teacher(trb: Operators, epsilon: float) -> None:
    vocab = 300
    names, student, logits = family_rows(vocab)
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(0))
    log_probs = logits.double().log_softmax(-1).float()
    top = TopK(order.expand(len(names), -1), log_probs[:, order])
    uniform = torch.linspace(0.013, 0.987, len(names), dtype=torch.float64)
    got, dense = (trb.sample(student, of, epsilon, uniform=uniform) for of in (top, log_probs))
    for row, name in enumerate(names):
        # The first nine digits of probabilities near 1 are not in their float32 logarithms.
        assert math.isclose(got.beta[row], dense.beta[row], rel_tol=5e-4, abs_tol=1e-7), name
        assert math.isclose(got.kl[row], dense.kl[row], rel_tol=4e-4, abs_tol=3e-6), name
    assert torch.equal(got.token, dense.token)


def test_a_grid_of_uniforms_reproduces_mu_to_two_counts(trb: Operators) -> None:
    grid = 4096
    uniform = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    for name in ("language model, close", "both masked"):
        student, logits = families(1100)[name]
        top = TopK(*(values.expand(grid, -1) for values in top_k_of(logits, 7)))
        drawn = trb.sample(student.expand(grid, -1), top, 0.1, uniform=uniform)
        mu = reference_top_k.behavior_log_probs(student, TopK(top.ids[0], top.log_probs[0]), drawn.beta[0]).exp()
        counts = torch.bincount(drawn.token, minlength=1100)
        assert ((counts - grid * mu).abs() <= 2 + 1e-6 * grid).all(), name
        assert (counts[mu == 0] == 0).all(), name


def ordinary(rows: int = 4, vocab: int = 1300) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(rows, vocab, generator=generator) * 2
    return student, student + torch.randn(rows, vocab, generator=generator)


def outcome(trb: Operators, student: Tensor, top: TopK, epsilon: float | Tensor) -> list[Tensor]:
    uniform = torch.full(student.shape[:-1], 0.37, dtype=torch.float64)
    return [
        *trb.sample(student, top, epsilon, uniform=uniform),
        *trb.solve(student, top, epsilon)[:2],
        *trb.blend(student, top, epsilon),
    ]


def same(got: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(got, expected, strict=True))


def only_fault(got: list[Tensor], expected: list[Tensor], row: int) -> bool:
    """Tells whether the row, and no other, is at fault in `got`."""
    faulty = got[0][row] == -1 and all(values[row].isnan().all() for values in got[1:])
    rest = torch.arange(len(got[0])) != row
    return bool(faulty) and same([values[rest] for values in got], [values[rest] for values in expected])


@pytest.mark.parametrize(
    "fault",
    ["id below -1", "id of no token", "an id twice", "NaN", "+inf", "mass above 1", "student NaN", "student +inf",
     "student NaN at an id", "student +inf at an id", "student without a finite logit"],
)  # fmt: skip
def test_a_row_at_fault_is_nan_and_does_not_change_the_others(trb: Operators, fault: str) -> None:
    student, logits = ordinary()
    top = top_k_of(logits, 6)
    expected = outcome(trb, student, top, 0.05)
    assert not any(values.isnan().any() for values in expected)
    student, ids, log_probs = student.clone(), top.ids.clone(), top.log_probs.clone()
    place = int(ids[2, 4])
    other = next(token for token in range(1300) if token not in ids[2])
    if fault == "id below -1":
        ids[2, 4] = -2
    elif fault == "id of no token":
        ids[2, 4] = 1300
    elif fault == "an id twice":
        ids[2, 4] = ids[2, 1]
    elif fault in ("NaN", "+inf"):
        log_probs[2, 4] = NAN if fault == "NaN" else INF
    elif fault == "mass above 1":
        log_probs[2, 4] = math.log(1.0011 - float(log_probs[2].exp().sum() - log_probs[2, 4].exp()))
    elif fault == "student without a finite logit":
        student[2] = -INF
    else:
        student[2, place if "at an id" in fault else other] = NAN if "NaN" in fault else INF
    assert only_fault(outcome(trb, student, TopK(ids, log_probs), 0.05), expected, 2)


def test_all_tokens_listed_without_mass_are_a_fault_and_a_part_of_them_is_not(trb: Operators) -> None:
    student = torch.zeros(2, 3)
    top = TopK(torch.tensor([[0, 1, 2], [0, 1, -1]]), torch.full((2, 3), -INF))
    solved = trb.solve(student, top, 2.0)
    assert solved.beta[0].isnan()
    assert solved.beta[1] == 1  # the teacher is sure of token 2
    assert solved.kl[1].item() == pytest.approx(math.log(3))


@pytest.mark.parametrize("epsilon", [-1.0, NAN])
def test_a_negative_or_nan_epsilon_of_one_row_faults_only_that_row(trb: Operators, epsilon: float) -> None:
    student, logits = ordinary()
    top, budget = top_k_of(logits, 6), torch.full((4,), 0.05)
    expected = outcome(trb, student, top, budget)
    assert same(expected, outcome(trb, student, top, float(budget[0])))
    budget[1] = epsilon
    assert only_fault(outcome(trb, student, top, budget), expected, 1)
    with pytest.raises(ValueError, match="epsilon must be a KL budget"):
        trbext.solve(student, top, epsilon)


def test_a_uniform_out_of_range_faults_only_that_row(trb: Operators) -> None:
    student, logits = ordinary()
    uniform = torch.tensor([0.2, 1.0, NAN, 0.9], dtype=torch.float64)
    drawn = trb.sample(student, top_k_of(logits, 6), 0.05, uniform=uniform)
    assert (drawn.token == -1).tolist() == [False, True, True, False]
    assert drawn.kl.isnan().tolist() == [False, True, True, False]


def test_the_ends_of_the_budget_are_the_student_and_the_teacher(trb: Operators) -> None:
    student, logits = ordinary()
    top = top_k_of(logits, 6)
    log_student = student.double().log_softmax(-1)
    blended = trb.blend(student, top, 0.0)
    assert (blended.beta == 0).all()
    assert (blended.kl == 0).all()
    assert torch.allclose(blended.log_probs.double(), log_student, atol=1e-5)
    blended = trb.blend(student, top, INF)
    assert (blended.beta == 1).all()
    assert torch.allclose(blended.log_probs.double(), reference_top_k.implied_teacher(student, top), atol=1e-5)


def test_a_rest_that_rounding_has_lost_is_that_of_the_student_up_to_1e_6(trb: Operators) -> None:
    """The probabilities add up to 1 + 1e-9, to 1.0005 and to 1 - 1e-8: neither a fault nor a teacher with a mask."""
    student = torch.zeros(3, 4)
    top = teacher([[0, 1]] * 3, [[1.0, 1e-9], [0.75, 0.2505], [0.5, 0.49999999]])
    for epsilon in (1e-3, 0.1, INF):
        solved, expected = (solve(student, top, epsilon) for solve in (trb.solve, reference_top_k.solve))
        assert torch.allclose(solved.beta.double(), expected.beta, rtol=3e-4)
        assert ((solved.kl <= epsilon * (1 + 1e-4)) & (solved.kl > 0.99 * min(epsilon, 0.65))).all()
    blended = trb.blend(student, top, INF).log_probs.exp()
    assert torch.allclose(blended[:, 2:].sum(-1), torch.full((3,), 1e-6), rtol=1e-3)
    drawn = trb.sample(student, top, INF, uniform=torch.tensor([0.99, 0.99, 0.99], dtype=torch.float64))
    assert drawn.token.tolist() == [0, 1, 1]
    assert torch.allclose(drawn.teacher_log_prob.exp(), torch.tensor([1.0, 0.2505 / 1.0005, 0.5]), atol=1e-5)
    # The student's own rest is less: it is left as it is.
    student = torch.tensor([[30.0, 30.0, 0.0, 0.0]])
    blended = trb.blend(student, TopK(*(values[2:] for values in top)), INF)
    assert torch.allclose(blended.log_probs.double(), student.double().log_softmax(-1), atol=1e-5)


def test_a_teacher_that_says_nothing_is_the_student(trb: Operators) -> None:
    student, _ = ordinary()
    for top in (TopK(torch.full((4, 3), -1), torch.full((4, 3), NAN)), TopK(torch.ones(4, 0).int(), torch.ones(4, 0))):
        blended = trb.blend(student, top, 1e-6)
        assert (blended.beta == 1).all()
        assert (blended.kl == 0).all()
        assert torch.allclose(blended.log_probs.double(), student.double().log_softmax(-1), atol=1e-5)


def test_tokens_without_student_mass_are_never_drawn(trb: Operators) -> None:
    student, logits = ordinary(vocab=40)
    student[:, ::2] = -INF
    top = top_k_of(logits, 10)  # some of them have no student mass
    for epsilon in EPSILONS:
        log_probs = trb.blend(student, top, epsilon).log_probs
        assert (log_probs[:, ::2] == -INF).all()
        for u in (0.0, 1 - 2.0**-53):
            drawn = trb.sample(student, top, epsilon, uniform=torch.full((4,), u, dtype=torch.float64))
            assert (drawn.token % 2 == 1).all()


def test_a_block_of_subnormal_mass_is_passed_over_by_the_smallest_uniform(trb: Operators) -> None:
    """Its tokens, each with a part of that mass, have none: a healthy row gave -1."""
    student, top = rows_with_a_block_of_little_mass()
    drawn = trb.sample(student, top, 0.1, uniform=torch.zeros(len(student), dtype=torch.float64))
    assert drawn.token[0] == 0
    assert ((drawn.token == 0) | (drawn.token == 1024)).all(), drawn.token
    assert drawn.kl.isfinite().all()


def test_supports_without_a_common_token_leave_the_student(trb: Operators) -> None:
    student = torch.tensor([[0.0, 1.0, -INF, -INF]])
    top = teacher([[0, 1]], [[0.0, 0.0]])
    for epsilon in (0.1, INF):
        blended = trb.blend(student, top, epsilon)
        assert (blended.beta, blended.kl) == (0, 0)
        assert torch.allclose(blended.log_probs, student.log_softmax(-1))


def test_padding_order_dtype_and_strides_of_the_k_tokens_change_nothing(trb: Operators) -> None:
    student, logits = ordinary()
    top = top_k_of(logits, 6)
    expected = outcome(trb, student, top, 0.05)
    order = torch.tensor([3, 7, 0, 5, 1, 6, 4, 2])
    ids = torch.cat([top.ids, torch.full((4, 2), -1)], -1)[:, order]
    log_probs = torch.cat([top.log_probs, torch.tensor([[NAN, 5.0]]).expand(4, -1)], -1)[:, order]
    for padded in (TopK(ids, log_probs), TopK(ids.int(), log_probs.t().contiguous().t())):
        assert same(outcome(trb, student, padded, 0.05), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_batch_strides_or_threads(
    trb: Operators, dtype: torch.dtype, threads: None
) -> None:
    student, logits = ordinary(5, 4500)
    student, top, budget = student.to(dtype), top_k_of(logits, 30), torch.linspace(1e-3, 0.2, 5)
    expected = outcome(trb, student, top, budget)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert same(outcome(trb, student, top, budget), expected), count
        for row in range(0, 5, 2):
            one = slice(row, row + 1)
            alone = outcome(trb, student[one], TopK(top.ids[one], top.log_probs[one]), budget[one])
            assert same(alone, [values[one] for values in expected]), (count, row)
    wide = torch.full((5, 2 * 4500 + 3), torch.nan, dtype=dtype)
    wide[:, 1:9001:2] = student
    assert same(outcome(trb, wide[:, 1:9001:2], top, budget), expected)
    order = torch.tensor([4, 2, 0, 3, 1])
    permuted = outcome(trb, student[order], TopK(top.ids[order], top.log_probs[order]), budget[order])
    assert same([values[order.argsort()] for values in permuted], expected)


def test_a_student_that_is_sure_of_the_k_tokens_keeps_the_digits_of_its_rest(trb: Operators) -> None:
    """The rest of the student is 1e-7 to 1e-20 and that of the teacher 1e-2: 1 less the sum of the student's k
    probabilities would have no digits of it."""
    vocab = 2000
    student = torch.zeros(4, vocab)
    student[:, 5] = torch.tensor([24.0, 32.0, 40.0, 50.0])
    top = teacher([[5]] * 4, [[0.99]] * 4)
    for epsilon in (1e-3, 0.01, INF):
        got, expected = trb.solve(student, top, epsilon), reference_top_k.solve(student, top, epsilon)
        assert torch.allclose(got.beta.double(), expected.beta, rtol=3e-4)
        assert torch.allclose(got.kl.double(), expected.kl, rtol=3e-4)


def test_shapes_with_leading_dimensions_and_none(trb: Operators) -> None:
    student, logits = ordinary(6, 50)
    top = top_k_of(logits, 4)
    flat = trb.blend(student, top, 0.1)
    batched = trb.blend(student.view(2, 3, 50), TopK(*(values.view(2, 3, 4) for values in top)), 0.1)
    assert batched.log_probs.shape == (2, 3, 50)
    assert torch.equal(batched.log_probs.view(6, 50), flat.log_probs)
    single = trb.solve(student[0], TopK(*(values[0] for values in top)), 0.1)
    assert single.beta.shape == ()
    assert single.beta == flat.beta[0]
    none = trb.solve(student[:0], TopK(*(values[:0] for values in top)), 0.1)
    assert none.beta.shape == (0,)


def test_arguments_that_do_not_fit_are_errors() -> None:
    student = torch.zeros(2, 5)
    for ids, log_probs in ((torch.zeros(3, 2).long(), torch.zeros(3, 2)), (torch.zeros(2, 2).long(), torch.zeros(2))):
        with pytest.raises(ValueError, match=r"ids and log_probs of a top-k teacher must have shape \[\.\.\., k\]"):
            trbext.solve(student, TopK(ids, log_probs), 0.1)
    with pytest.raises(RuntimeError, match="teacher_log_probs must be Float, got Double"):
        trbext.solve(student, TopK(torch.zeros(2, 1).long(), torch.zeros(2, 1).double()), 0.1)
