"""Compares `trbext.solve` with the float64 reference: feasible everywhere, and tight wherever the budget binds."""

from __future__ import annotations

import math

import pytest
import torch

from python_tests.operators.devices import Operators
from python_tests.operators.row_families import EPSILONS, families
from trbext import reference

# The docs of trbext.ops promise the first two; the last says what "the largest beta" means.
EXCESS, EXCESS_NATS, SHORTFALL = 1e-4, 1e-7, 3e-4
KL_ERROR = 2e-5  # of the reported KL, whose sums are of float32 weights


@pytest.mark.parametrize("vocab", [2, 17, 1000, 49152, 151936, pytest.param(262144, marks=pytest.mark.nightly)])
def test_kl_is_within_the_budget_and_uses_it(trb: Operators, vocab: int) -> None:
    for name, (student, teacher) in families(vocab).items():
        budgets = torch.tensor(EPSILONS)
        rows = student.expand(len(EPSILONS), -1), teacher.expand(len(EPSILONS), -1)
        beta, kl, sweeps = trb.solve(*rows, budgets)
        true_kl = torch.stack([reference.behavior_kl(student, teacher, b) for b in beta])
        common = (student > -torch.inf) & (teacher > -torch.inf)
        floor = -torch.logsumexp(student.double().log_softmax(-1)[common], 0)  # KL of any beta > 0 is at least this
        at_teacher = reference.behavior_kl(student, teacher, torch.tensor(1.0))
        for i, epsilon in enumerate(EPSILONS):
            case = f"{name}, V={vocab}, epsilon={epsilon}: beta={beta[i]:.9g}, KL={true_kl[i]:.9g}"
            assert 0 <= beta[i] <= 1, case
            assert true_kl[i] <= epsilon * (1 + EXCESS) + EXCESS_NATS, case
            assert math.isclose(kl[i], true_kl[i], rel_tol=KL_ERROR, abs_tol=2e-6), case
            if at_teacher <= epsilon:
                assert beta[i] == 1, case
            elif floor > epsilon:
                assert beta[i] == 0, case
            else:
                assert true_kl[i] >= epsilon * (1 - SHORTFALL), case
            assert 1 <= sweeps[i] <= 64, case


def check_betas(
    trb: Operators,
    vocab: int,
    epsilons: tuple[float, ...],
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32),
    temperature: float = 1.0,
) -> None:
    """Compares beta of each family at each budget with the bisected one."""
    pairs = families(vocab)
    rows = [torch.stack([pair[i].to(dtypes[i]) for pair in pairs.values() for _ in epsilons]) for i in (0, 1)]
    budgets = torch.tensor(epsilons).repeat(len(pairs))
    got = trb.solve(*rows, budgets, temperature=temperature).beta
    expected = reference.solve(*rows, budgets, temperature=temperature).beta
    for name, epsilon, found, bisected in zip(
        [name for name in pairs for _ in epsilons], budgets.tolist(), got.tolist(), expected.tolist(), strict=True
    ):
        # KL has at least the slope 2 KL / beta in log beta, so the KL tolerance bounds beta's.
        assert math.isclose(found, bisected, rel_tol=SHORTFALL), f"{name}, epsilon={epsilon}: {found} {bisected}"


@pytest.mark.parametrize("vocab", [2, 17, 1000])
def test_beta_is_the_bisected_one(trb: Operators, vocab: int) -> None:
    check_betas(trb, vocab, EPSILONS)


def test_small_budgets_follow_the_expansion(trb: Operators) -> None:
    """beta = sqrt(2 epsilon / Var_S[r]) + O(epsilon)."""
    student, teacher = families(1000)["zipf, close"]
    log_student, log_teacher = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
    ratio, weight = log_teacher - log_student, log_student.exp()
    variance = (weight * ratio**2).sum() - (weight * ratio).sum() ** 2
    for epsilon in (1e-4, 1e-6, 1e-8):
        expected = math.sqrt(2 * epsilon / variance)
        assert trb.solve(student, teacher, epsilon).beta.item() == pytest.approx(expected, rel=5 * math.sqrt(epsilon))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_dtypes_and_temperature(trb: Operators, dtype: torch.dtype, temperature: float) -> None:
    check_betas(trb, 257, (1e-4, 0.05, 1.0), (dtype, torch.float32), temperature)  # the dtypes may differ


def test_epsilon_per_row_equals_one_epsilon_at_a_time(trb: Operators) -> None:
    rows = list(families(1000).values())
    student, teacher = (torch.stack([pair[i].float() for pair in rows]) for i in (0, 1))
    budgets = torch.rand(len(rows), generator=torch.Generator().manual_seed(0))
    together = trb.solve(student, teacher, budgets)
    for i, budget in enumerate(budgets):
        alone = trb.solve(student[i], teacher[i], budget.item())
        assert all(torch.equal(a, b[i]) for a, b in zip(alone, together, strict=True))


BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("student", "teacher", "dtypes", "epsilon", "temperature"),
    [
        # f is a step that six float32 sweeps do not find the edge of
        ([-108.937, -0.023], [0.526, -108.224], (FLOAT32, FLOAT32), 1.697, 0.564),
        # Exponents of 190 nats, whose rounding the sums of weights would show.
        ([-0.6953125, -191], [-0.369140625, 1.7265625], (BFLOAT16, BFLOAT16), 0.033720020204782486, 1.0),
        # A token of 7e-4 that loses 300 nats: e^v - 1 must not come from the sum of e^v - 1 - v and v.
        ([1.0078125, -42.25, 8.3125], [-286.7338, 57.73465, 62.5224], (BFLOAT16, FLOAT32), 0.0025882632, 1.0),
        # Double precision: a mean of 1e5 nats would leave few digits of a small KL.
        ([43264.0, 43520.0, 43776.0, 44032.0] * 237, [15296.0] * 948, (BFLOAT16, BFLOAT16), 1.712947863e-07, 0.3187),
    ],
    ids=["a step", "190 nats", "a token that vanishes", "logits of 1e5 nats"],
)  # fmt: skip
def test_rows_that_rounding_once_took_beyond_the_budget_or_short_of_it(
    trb: Operators,
    student: list[float],
    teacher: list[float],
    dtypes: tuple[torch.dtype, torch.dtype],
    epsilon: float,
    temperature: float,
) -> None:
    rows = torch.tensor(student).to(dtypes[0]), torch.tensor(teacher).to(dtypes[1])
    solved = trb.solve(*rows, epsilon, temperature=temperature)
    kl = reference.behavior_kl(*rows, solved.beta, temperature)
    assert epsilon * (1 - SHORTFALL) <= kl <= epsilon * (1 + EXCESS)
    assert math.isclose(solved.kl, kl, rel_tol=KL_ERROR, abs_tol=1e-9)


@pytest.mark.parametrize("offset", [1e3, 1e5, 5e6])
@pytest.mark.parametrize("masked", ["neither", "student", "teacher"])
def test_an_offset_between_the_models_costs_no_digits_whatever_the_first_token_is(
    trb: Operators, offset: float, masked: str
) -> None:
    """D is centered by the first token that both models have; if there is none, D is not centered."""
    generator = torch.Generator().manual_seed(0)
    student, noise = torch.randn(1025, generator=generator), torch.randn(1025, generator=generator)
    teacher = student + noise + offset  # rounded: the reference is given the same
    if masked != "neither":
        (student if masked == "student" else teacher)[0] = -torch.inf
    for epsilon in (0.05, 5.0):
        solved = trb.solve(student, teacher, epsilon)
        kl = reference.behavior_kl(student, teacher, solved.beta)
        assert math.isclose(solved.kl, kl, rel_tol=KL_ERROR, abs_tol=4e-6)
        assert solved.beta == 1 or kl >= epsilon * (1 - SHORTFALL)
        assert kl <= epsilon * (1 + EXCESS)


def test_what_the_student_masks_costs_no_digits_however_likely_it_is_under_the_teacher(trb: Operators) -> None:
    """The common support then lies far below the teacher's largest logit, and few tokens average no rounding away."""
    generator = torch.Generator().manual_seed(0)
    rows, vocab = 2000, 4
    student, noise = (torch.randn(rows, vocab, generator=generator) for _ in "ab")
    teacher = student + 2 * noise
    student[:, ::2] = -torch.inf
    teacher[:, ::2] += torch.linspace(1, 68, rows)[:, None]
    for temperature in (1.0, 0.3):
        for epsilon in (0.02, 5.0):
            solved = trb.solve(student * temperature, teacher * temperature, epsilon, temperature=temperature)
            kl = reference.behavior_kl(student * temperature, teacher * temperature, solved.beta, temperature)
            assert (kl <= epsilon * (1 + EXCESS)).all()
            assert (solved.beta[kl < epsilon * (1 - SHORTFALL)] == 1).all()
            assert ((solved.kl - kl).abs() - KL_ERROR * kl).max() <= 3e-6
