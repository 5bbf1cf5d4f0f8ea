"""Rows of which rounding once cost the answer its digits."""

from __future__ import annotations

import pytest
import torch

from python_tests.operators.devices import Operators
from python_tests.operators.test_edges import Operator, Outcome
from trbext import reference

pytestmark = pytest.mark.on_ptx


# Beside an offset of 1e30, or beside a token of that size that the other model masks, logits keep no digits.
@pytest.mark.parametrize("name", ["blend", "solve", "sample"])
@pytest.mark.parametrize(
    ("student", "teacher", "epsilon"),
    [
        ([0.0, 0.0, -torch.inf], [0.0, 1.0, 1e30], 0.01),
        ([0.0, 1.0, 1e30], [0.0, 0.0, -torch.inf], 1e31),
        ([1e30, 1e30], [0.0, 3.0], 0.1),
        ([0.0, 3.0], [1e30, 1e30], 0.1),
        ([1e30, 1e30, -torch.inf, -torch.inf], [-torch.inf, -torch.inf, 1e30, 1e30], 0.1),
    ],
)
def test_huge_logits_of_other_tokens_cost_no_digits(
    name: str, trb: Operators, student: list[float], teacher: list[float], epsilon: float
) -> None:
    rows = torch.tensor([student]), torch.tensor([teacher])
    got, expected = Outcome(Operator(name, trb), *rows, epsilon), reference.solve(*rows, epsilon)
    assert got.beta.item() == pytest.approx(expected.beta.item(), rel=3e-4)
    assert got.kl.item() == pytest.approx(expected.kl.item(), rel=3e-4)
    assert got.follows(0, reference.behavior_log_probs(*rows, got.beta)[0])
    if got.token is not None:
        assert got.student[0].item() == pytest.approx(
            rows[0].double().log_softmax(-1)[0, got.token[0]].item(), rel=1e-6
        )


def test_the_smallest_beta_is_found(trb: Operators) -> None:
    """KL jumps from 0 to 800 nats at 2.7e-36, where no interpolation helps: the search bisects all float32 numbers."""
    gap = 2.0**83
    student, teacher = torch.tensor([[0.0, -600.0, -600.0, -800.0]]), torch.tensor([[0.0, gap, -gap, 3e38]])
    got = trb.solve(student, teacher, 50.0)
    above = torch.nextafter(got.beta, torch.ones(1))
    assert got.beta > 1e-36
    assert reference.behavior_kl(student, teacher, got.beta) <= 50
    assert reference.behavior_kl(student, teacher, above) > 50 or got.kl >= 50 * (1 - 3e-4)


def test_means_far_apart_cost_no_digits(trb: Operators) -> None:
    """The ends of the last bracket have means 400 nats apart, from whose middle the sums of weights were taken."""
    epsilon = torch.linspace(0.0170, 0.0196, 1500)[[358, 418, 428, 429]]
    student, teacher = torch.tensor([[0.3, 0.3, -265.7]] * 4), torch.tensor([[0.1, 0.728, 137.1]] * 4)
    solved = trb.solve(student, teacher, epsilon)
    kl = reference.behavior_kl(student, teacher, solved.beta)
    assert (kl <= epsilon * (1 + 1e-4)).all()
    assert (kl >= epsilon * (1 - 3e-4)).all()
    assert torch.allclose(solved.kl.double(), kl, rtol=2e-5)
