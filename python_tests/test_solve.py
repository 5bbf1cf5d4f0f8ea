"""`trbext.solve` against the float64 reference: feasible everywhere, and tight wherever the budget binds."""

from __future__ import annotations

import math

import pytest
import torch
from devices import Operators
from row_families import EPSILONS, families

from trbext import reference

# docs of trbext.ops promise the first two; the last says what "the largest beta" means.
EXCESS, EXCESS_NATS, SHORTFALL = 1e-4, 1e-7, 3e-4
KL_ERROR = 2e-5  # of the reported KL, whose sums are of float32 weights


@pytest.mark.parametrize("vocab", [2, 17, 1000, 49152, 151936, 262144])
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


@pytest.mark.parametrize("vocab", [2, 17, 1000])
def test_beta_is_the_bisected_one(trb: Operators, vocab: int) -> None:
    for name, (student, teacher) in families(vocab).items():
        for epsilon in EPSILONS:
            got = trb.solve(student, teacher, epsilon).beta
            expected = reference.solve(student, teacher, epsilon).beta
            # KL has at least the slope 2 KL / beta in log beta, so the KL tolerance bounds beta's.
            assert math.isclose(got, expected, rel_tol=SHORTFALL), f"{name}, epsilon={epsilon}: {got} {expected}"


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
    for name, (student, teacher) in families(257).items():
        student, teacher = student.to(dtype), teacher.to(torch.float32)  # the dtypes may differ
        for epsilon in (1e-4, 0.05, 1.0):
            got = trb.solve(student, teacher, epsilon, temperature=temperature).beta
            expected = reference.solve(student, teacher, epsilon, temperature=temperature).beta
            assert math.isclose(got, expected, rel_tol=SHORTFALL), f"{name}, epsilon={epsilon}: {got} {expected}"


def test_epsilon_per_row_equals_one_epsilon_at_a_time(trb: Operators) -> None:
    rows = list(families(1000).values())
    student, teacher = (torch.stack([pair[i].float() for pair in rows]) for i in (0, 1))
    budgets = torch.rand(len(rows), generator=torch.Generator().manual_seed(0))
    together = trb.solve(student, teacher, budgets)
    for i, budget in enumerate(budgets):
        alone = trb.solve(student[i], teacher[i], budget.item())
        assert all(torch.equal(a, b[i]) for a, b in zip(alone, together, strict=True))
