"""`trbext.blend` writes log mu at the returned beta, and solve, sample and blend agree with each other."""

from __future__ import annotations

import pytest
import torch

from python_tests.operators.devices import Operators
from python_tests.operators.row_families import families
from trbext import reference


@pytest.mark.parametrize("vocab", [2, 1000, 49152])
def test_log_probs_are_mu_at_the_returned_beta(trb: Operators, vocab: int) -> None:
    for name, (student, teacher) in families(vocab).items():
        for epsilon in (0.0, 1e-4, 0.1, 1.0, float("inf")):
            log_probs, beta, _ = trb.blend(student, teacher, epsilon, temperature=0.8)
            expected = reference.behavior_log_probs(student, teacher, beta, 0.8)
            assert torch.allclose(log_probs.double(), expected, atol=1e-5, rtol=1e-6), (name, epsilon)
            assert torch.equal(log_probs == -torch.inf, expected == -torch.inf), (name, epsilon)
            assert log_probs.double().exp().sum().item() == pytest.approx(1, abs=1e-5), (name, epsilon)


def test_the_three_operators_agree(trb: Operators) -> None:
    for name, (student, teacher) in families(3000).items():
        for epsilon in (1e-3, 0.1):
            blended, solved = trb.blend(student, teacher, epsilon), trb.solve(student, teacher, epsilon)
            drawn = trb.sample(student, teacher, epsilon, uniform=torch.tensor(0.3, dtype=torch.float64))
            assert blended.beta == solved.beta == drawn.beta, name
            assert blended.kl == solved.kl == drawn.kl, name
            assert abs(blended.log_probs[drawn.token] - drawn.log_prob) < 4e-6, name  # float32 there, float64 here


def test_small_budgets_move_towards_the_teacher_at_the_predicted_rate(trb: Operators) -> None:
    """KL(pi_S || pi_T) - KL(mu || pi_T) = sqrt(2 epsilon Var_S[r]) + O(epsilon)."""
    student, teacher = families(1000)["zipf, close"]
    log_student, log_teacher = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
    ratio = log_teacher - log_student
    variance = (log_student.exp() * ratio**2).sum() - (log_student.exp() * ratio).sum() ** 2
    epsilon = 1e-4
    log_mu = trb.blend(student, teacher, epsilon).log_probs.double()
    gain = -(log_student.exp() * ratio).sum() - (log_mu.exp() * (log_mu - log_teacher)).sum()
    assert gain.item() == pytest.approx((2 * epsilon * variance).sqrt().item(), rel=0.03)
