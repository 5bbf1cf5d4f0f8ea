"""Tests every row of the table of semantics at the edges (docs of trbext.ops) on every operator and both overloads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import trbext
from python_tests.operators.devices import Operators, on, other_overload_on_ptx
from python_tests.operators.row_families import families
from trbext import reference

pytestmark = [pytest.mark.on_ptx, pytest.mark.nightly_if(case=other_overload_on_ptx)]

INF, NAN = float("inf"), float("nan")
Epsilon = float | Tensor
Overload = Callable[[float, int], Epsilon]


class Operator(NamedTuple):
    """One of the operators, on one device."""

    name: str
    trb: Operators


class Outcome:
    """What any of the three operators says of a row: beta, kl, and, if it can, mu and a token."""

    def __init__(self, op: Operator, student: Tensor, teacher: Tensor, epsilon: Epsilon, uniform: float = 0.37) -> None:
        self.log_probs: Tensor | None = None
        self.token: Tensor | None = None
        if op.name == "blend":
            self.log_probs, self.beta, self.kl = op.trb.blend(student, teacher, epsilon)
        elif op.name == "solve":
            self.beta, self.kl, _ = op.trb.solve(student, teacher, epsilon)
        else:
            u = torch.full(student.shape[:-1], uniform, dtype=torch.float64)
            drawn = op.trb.sample(student, teacher, epsilon, uniform=u)
            self.token, self.beta, self.kl = drawn.token, drawn.beta, drawn.kl
            self.log_prob, self.student, self.teacher = drawn.log_prob, drawn.student_log_prob, drawn.teacher_log_prob

    def is_fault(self, row: int) -> bool:
        values = [self.beta[row], self.kl[row]]
        if self.log_probs is not None:
            values += list(self.log_probs[row])
        if self.token is not None:
            assert self.token[row] == -1
            values += [self.log_prob[row], self.student[row], self.teacher[row]]
        return all(math.isnan(v) for v in values)

    def follows(self, row: int, log_mu: Tensor) -> bool:
        """Tells whether the outcome agrees with the expected float64 log mu of the row, as far as this operator shows
        mu."""
        if self.log_probs is not None:
            return torch.allclose(self.log_probs[row].double(), log_mu, atol=1e-5, rtol=1e-6)
        if self.token is not None:
            token = int(self.token[row])
            return token >= 0 and log_mu[token] > -INF and abs(self.log_prob[row].item() - log_mu[token].item()) < 1e-5
        return True


@pytest.fixture(params=["blend", "solve", "sample"])
def op(request: pytest.FixtureRequest, trb: Operators) -> Operator:
    return Operator(str(request.param), trb)


@pytest.fixture(params=["float", "per_row"])
def overload(request: pytest.FixtureRequest) -> Overload:
    return {"float": lambda e, n: e, "per_row": lambda e, n: torch.full((n,), e)}[request.param]


def ordinary(rows: int = 3, vocab: int = 1500) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    student = torch.randn(rows, vocab, generator=generator) * 2
    return student, student + torch.randn(rows, vocab, generator=generator)


def log_softmax(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)


def test_tokens_without_student_mass_are_never_in_mu(op: Operator, overload: Overload) -> None:
    student, teacher = ordinary()
    student[:, ::2] = -INF
    for epsilon in (0.0, 1e-4, 0.1, INF):
        got = Outcome(op, student, teacher, overload(epsilon, 3))
        for row in range(3):
            assert got.follows(row, reference.behavior_log_probs(student[row], teacher[row], got.beta[row])), epsilon
            if got.token is not None:
                assert got.token[row] % 2 == 1


def test_a_teacher_that_masks_less_than_the_budget_is_blended_on_the_common_support(
    op: Operator, overload: Overload
) -> None:
    student, teacher = ordinary()
    teacher[:, 3] = -INF
    floor = -torch.log1p(-log_softmax(student)[:, 3].exp())  # KL(0+) = -log pi_S(supp pi_T)
    epsilon = 0.05
    assert (floor < epsilon).all()
    got = Outcome(op, student, teacher, overload(epsilon, 3))
    for row in range(3):
        assert floor[row] <= got.kl[row] <= epsilon * (1 + 1e-4)
        assert got.kl[row] >= epsilon * (1 - 3e-4)
        expected = reference.blend(student[row], teacher[row], epsilon).log_probs
        assert expected[3] == -INF
        if got.log_probs is not None:
            assert got.log_probs[row, 3] == -INF
            assert torch.allclose(got.log_probs[row].double(), expected, atol=2e-3)


def test_a_teacher_that_masks_more_than_the_budget_leaves_the_student(op: Operator, overload: Overload) -> None:
    student, teacher = ordinary()
    teacher[:, student.argmax(-1)] = -INF
    got = Outcome(op, student, teacher, overload(1e-3, 3))
    assert (got.beta == 0).all()
    assert (got.kl == 0).all()
    assert all(got.follows(row, log_softmax(student)[row]) for row in range(3))


def test_log_teacher_is_minus_infinity_if_the_student_draws_a_token_that_the_teacher_masks(trb: Operators) -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[-INF, 0.0]])
    drawn = trb.sample(student, teacher, 0.1, uniform=torch.tensor([0.2], dtype=torch.float64))
    assert drawn.token.item() == 0
    assert drawn.teacher_log_prob.item() == -INF
    assert drawn.student_log_prob.item() == pytest.approx(math.log(0.5))


@pytest.mark.parametrize("epsilon", [0.0, 0.1, INF])
def test_disjoint_supports_leave_the_student_whatever_epsilon(op: Operator, overload: Overload, epsilon: float) -> None:
    student, teacher = ordinary()
    student[:, ::2], teacher[:, 1::2] = -INF, -INF
    got = Outcome(op, student, teacher, overload(epsilon, 3))
    assert (got.beta == 0).all()
    assert (got.kl == 0).all()
    assert all(got.follows(row, log_softmax(student)[row]) for row in range(3))


def test_epsilon_zero_is_the_student(op: Operator, overload: Overload) -> None:
    student, teacher = ordinary()
    got = Outcome(op, student, teacher, overload(0.0, 3))
    assert (got.beta == 0).all()
    assert (got.kl == 0).all()
    assert all(got.follows(row, log_softmax(student)[row]) for row in range(3))


def test_epsilon_infinite_is_the_teacher_on_the_students_support(op: Operator, overload: Overload) -> None:
    student, teacher = ordinary()
    student[:, 5] = -INF
    got = Outcome(op, student, teacher, overload(INF, 3))
    assert (got.beta == 1).all()
    restricted = teacher.clone()
    restricted[:, 5] = -INF
    assert all(got.follows(row, log_softmax(restricted)[row]) for row in range(3))
    assert torch.allclose(got.kl.double(), reference.behavior_kl(student, teacher, torch.ones(3)), rtol=1e-6)


def test_identical_rows_and_constant_offsets_take_the_teacher(op: Operator, overload: Overload) -> None:
    student, _ = ordinary()
    for offset in (0.0, 3.0, -64.0):
        got = Outcome(op, student, student + offset, overload(1e-6, 3))
        assert (got.beta == 1).all(), offset
        assert (got.kl <= 1e-6).all()


@pytest.mark.parametrize("epsilon", [-1.0, NAN, -INF])
def test_a_negative_or_nan_float_epsilon_is_an_error_that_names_it(op: Operator, epsilon: float) -> None:
    student, teacher = ordinary()
    with pytest.raises(
        ValueError, match=r"epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got (-1|nan|-inf)"
    ):
        Outcome(op, student, teacher, epsilon)
    arguments = (student, teacher, epsilon) + ((torch.zeros(3, dtype=torch.float64),) if op.name == "sample" else ())
    arguments = tuple(on(op.trb.device, a) if isinstance(a, Tensor) else a for a in arguments)
    with pytest.raises(RuntimeError, match=f"trb::{op.name}: epsilon must be a KL budget in nats"):
        getattr(torch.ops.trb, op.name)(*arguments)


def test_a_negative_or_nan_epsilon_of_one_row_faults_only_that_row(op: Operator) -> None:
    student, teacher = ordinary(5)
    epsilon = torch.tensor([0.1, -1.0, NAN, -0.0, 0.1])
    got = Outcome(op, student, teacher, epsilon)
    assert [got.is_fault(row) for row in (1, 2)] == [True, True]
    for row in (0, 3, 4):
        alone = Outcome(op, student[row : row + 1], teacher[row : row + 1], epsilon[row].item())
        assert torch.equal(got.beta[row], alone.beta[0])
        assert torch.equal(got.kl[row], alone.kl[0])


@pytest.mark.parametrize("epsilon", [-1.0, NAN, -INF])
def test_a_negative_or_nan_epsilon_of_a_single_row_faults_it(op: Operator, epsilon: float) -> None:
    """A tensor of one element is the epsilon of a row too. It is not a float, whose fault would be the call's."""
    student, teacher = ordinary(1)
    assert Outcome(op, student, teacher, torch.tensor([epsilon])).is_fault(0)


WithoutFaults = Callable[[Operator, Epsilon], Outcome]


@pytest.fixture(scope="module")
def without_faults() -> WithoutFaults:
    """Returns what an operator says of three ordinary rows; it says so once, as the interpreter is slow."""
    said: dict[tuple[str, int, bool, float], Outcome] = {}

    def outcome(op: Operator, epsilon: Epsilon) -> Outcome:
        by_row = isinstance(epsilon, Tensor)
        key = op.name, id(op.trb), by_row, float(epsilon[0] if isinstance(epsilon, Tensor) else epsilon)
        if key not in said:
            said[key] = Outcome(op, *ordinary(3), epsilon)
        return said[key]

    return outcome


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("fault", ["NaN", "+inf", "no finite logit", "NaN beside -inf", "+inf beside -inf"])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, INF])
def test_a_row_at_fault_is_nan_and_does_not_change_the_others(
    op: Operator, overload: Overload, without_faults: WithoutFaults, side: str, fault: str, epsilon: float
) -> None:
    student, teacher = ordinary(3)
    clean = without_faults(op, overload(epsilon, 3))
    row = (student if side == "student" else teacher)[1]
    if fault == "no finite logit":
        row[:] = -INF
    else:
        row[1200] = NAN if "NaN" in fault else INF
        if "beside" in fault:  # in the other model, at the same token, and in the whole block around it
            other = (teacher if side == "student" else student)[1]
            other[1024:] = -INF
            row[1024:1200] = -INF
    got = Outcome(op, student, teacher, overload(epsilon, 3))
    assert got.is_fault(1)
    for other_row in (0, 2):
        assert torch.equal(got.beta[other_row], clean.beta[other_row])
        assert torch.equal(got.kl[other_row], clean.kl[other_row])
        if got.log_probs is not None:
            assert torch.equal(got.log_probs[other_row], clean.log_probs[other_row])
        if got.token is not None:
            assert torch.equal(got.token[other_row], clean.token[other_row])


@pytest.mark.parametrize("uniform", [-1e-9, 1.0, NAN, INF])
def test_a_uniform_outside_its_range_faults_only_that_row(trb: Operators, uniform: float) -> None:
    student, teacher = ordinary(2)
    drawn = trb.sample(student, teacher, 0.1, uniform=torch.tensor([uniform, 0.5], dtype=torch.float64))
    assert drawn.token[0] == -1
    assert all(math.isnan(values[0]) for values in drawn[1:])
    assert drawn.token[1] >= 0


def test_lowest_finite_logits_are_an_ordinary_mask(op: Operator, overload: Overload) -> None:
    """Trainers mask with finfo.min as well as with -inf; both must give the same policy."""
    student, teacher = ordinary()
    student[:, ::3] = teacher[:, ::3] = -INF
    infinite = Outcome(op, student, teacher, overload(0.05, 3))
    lowest = torch.finfo(torch.float32).min
    finite = Outcome(op, student.clamp(min=lowest), teacher.clamp(min=lowest), overload(0.05, 3))
    assert torch.equal(infinite.beta, finite.beta)
    if infinite.token is not None:
        assert torch.equal(infinite.token, finite.token)
    if infinite.log_probs is not None:
        assert torch.equal(infinite.log_probs.exp(), finite.log_probs.exp())


@pytest.mark.parametrize("epsilon", [0.0, 0.1, INF])
def test_no_rows(op: Operator, overload: Overload, epsilon: float) -> None:
    got = Outcome(op, torch.empty(0, 7), torch.empty(0, 7), overload(epsilon, 0))
    assert got.beta.shape == got.kl.shape == (0,)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, INF])
def test_a_vocabulary_of_one_token(op: Operator, overload: Overload, epsilon: float) -> None:
    got = Outcome(op, torch.full((2, 1), 3.0), torch.full((2, 1), -5.0), overload(epsilon, 2))
    assert got.beta.tolist() == ([0.0, 0.0] if epsilon == 0 else [1.0, 1.0])
    assert got.kl.tolist() == [0.0, 0.0]
    if got.token is not None:
        assert got.token.tolist() == [0, 0]
    if got.log_probs is not None:
        assert got.log_probs.tolist() == [[0.0], [0.0]]


@pytest.mark.nightly_if(case=lambda trb, vocab, **_: trb.interpreted and vocab not in (1, 1023, 2049))
@pytest.mark.parametrize("vocab", [1, 2, 3, 1023, 1024, 1025, 2049])
def test_odd_vocabularies_misaligned_storage_and_transposed_inputs(
    op: Operator, overload: Overload, vocab: int
) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        generator = torch.Generator().manual_seed(vocab)
        wide = torch.randn(4, vocab + 5, generator=generator).to(dtype)
        other = torch.randn(4, vocab + 5, generator=generator).to(dtype)
        sliced = wide[:, 3 : 3 + vocab], other[:, 1 : 1 + vocab]  # padded rows, odd offsets
        plain = tuple(t.contiguous() for t in sliced)
        transposed = tuple(t.t().contiguous().t() for t in plain)
        expected = Outcome(op, *plain, overload(0.03, 4))
        for layout in (sliced, transposed):
            got = Outcome(op, *layout, overload(0.03, 4))
            assert torch.equal(got.beta, expected.beta)
            assert torch.equal(got.kl, expected.kl)
            if got.token is not None:
                assert torch.equal(got.token, expected.token)
            if got.log_probs is not None:
                assert torch.equal(got.log_probs, expected.log_probs)


def test_more_than_2_to_the_31_logits(op: Operator, overload: Overload) -> None:
    """The rows lie 2^31 elements into the storage; they are expanded from one padded row, so that no memory is spent on
    them."""
    if op.trb.interpreted:
        pytest.skip("the storage of 2^31 logits is too large for the interpreter")
    if op.trb.device == "cuda" and torch.cuda.mem_get_info()[0] < 6e9:
        pytest.skip(f"needs 6 GB of GPU memory, got {torch.cuda.mem_get_info()[0] / 1e9:.1f}")
    rows, vocab = 5, 1000
    storage = torch.from_numpy(np.zeros(2**31 + vocab, np.float16))  # torch.zeros would write to its 4 GB
    last = 2**31 // (rows - 1)
    student = storage.as_strided((rows, vocab), (last, 1))
    values = torch.randn(vocab, generator=torch.Generator().manual_seed(0)).half()
    student[rows - 1] = values
    teacher = torch.zeros(1, vocab).expand(rows, vocab)
    got = Outcome(op, student, teacher, overload(0.01, rows))
    alone = Outcome(op, values[None], torch.zeros(1, vocab), overload(0.01, 1))
    assert got.beta[rows - 1] == alone.beta[0] < 1
    assert got.beta[0] == 1


def test_shapes_with_leading_dimensions(trb: Operators) -> None:
    student, teacher = ordinary(6)
    batched = trb.sample(
        student.view(2, 3, -1), teacher.view(2, 3, -1), 0.1, uniform=torch.full((2, 3), 0.4, dtype=torch.float64)
    )
    flat = trb.sample(student, teacher, 0.1, uniform=torch.full((6,), 0.4, dtype=torch.float64))
    for a, b in zip(batched, flat, strict=True):
        assert a.shape == (2, 3)
        assert torch.equal(a.reshape(-1), b)
    assert trb.blend(student.view(2, 3, -1), teacher.view(2, 3, -1), torch.rand(2, 1)).log_probs.shape == (
        2,
        3,
        1500,
    )
    single = trb.solve(student[0], teacher[0], 0.1)
    assert single.beta.shape == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 4), 0.1), r"same shape \[\.\.\., V\], got \[2, 3\] and \[2, 4\]"),
        ((torch.zeros(2, 0), torch.zeros(2, 0), 0.1), r"at least one token, got shape \[2, 0\]"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3)), r"epsilon must broadcast to \[2\], got shape \[3\]"),
    ],
)
def test_usage_errors_name_the_thing_the_requirement_and_what_was_got(
    arguments: tuple[Tensor, Tensor, Epsilon], message: str
) -> None:
    for function in (trbext.blend, trbext.solve, trbext.sample):
        with pytest.raises(ValueError, match=message):
            function(*arguments)


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, INF])
def test_a_temperature_that_is_not_positive_and_finite_is_an_error(op: Operator, temperature: float) -> None:
    student, teacher = ordinary()
    with pytest.raises(ValueError, match="temperature must be between 1e-6 and 1e6, got"):
        getattr(op.trb, op.name)(student, teacher, 0.1, temperature=temperature)


def test_errors_of_the_bare_operators() -> None:
    student, teacher = ordinary()
    solve, sample = torch.ops.trb.solve, torch.ops.trb.sample
    u = torch.zeros(3, dtype=torch.float64)
    for call, message in [
        (
            lambda: solve(student[0], teacher[0], 0.1),
            r"trb::solve: student_logits must have shape \[N, V\], got \[1500\]",
        ),
        (lambda: solve(student.double(), teacher, 0.1), "must be float32, float16 or bfloat16, got Double"),
        (lambda: solve(student, teacher[:2], 0.1), r"same shape, got \[3, 1500\] and \[2, 1500\]"),
        (lambda: solve(student, teacher, torch.zeros(3, dtype=torch.float64)), "epsilon must be Float, got Double"),
        (lambda: solve(student, teacher, torch.zeros(2)), r"epsilon must have shape \[N\] = \[3\], got \[2\]"),
        (lambda: sample(student, teacher, 0.1, u.float()), "uniform must be Double, got Float"),
        (lambda: sample(student, teacher, 0.1, u[:2]), r"uniform must have shape \[N\] = \[3\], got \[2\]"),
        (lambda: solve(student, teacher, 0.1, temperature=0.0), "temperature must be between 1e-6 and 1e6, got 0"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_families_have_no_faulty_rows() -> None:
    """The table above is about faults; the solver's test rows must not contain any by accident."""
    for name, (student, teacher) in families(1000).items():
        assert not reference.rows_at_fault(student, teacher), name
