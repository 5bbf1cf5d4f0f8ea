"""Compares the losses of SAKI, TOP-D and IW-OPD with their formulas: by hand, and as expectations over all tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from python_tests.training.loss_cases import ROWS, VOCABULARY, gradient, logits
from trbext import reference
from trbext.training.losses import cross_entropy, reverse_kl, sampled_reverse_kl
from trbext.training.supervision.position_weights import position_weights
from trbext.training.supervision.proximal import proximal_target
from trbext.training.supervision.routed import routed_loss

# ---- SAKI's routed loss ----


def pair(temperature: float = 1.0, *, excluded: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the logits of student and teacher, and pi_S and mu within 0.4 nats, [ROWS, V]."""
    student, teacher = logits(8)
    if excluded:
        teacher = teacher.masked_fill(torch.arange(VOCABULARY) == 3, -torch.inf)
    mu = reference.blend(student.detach(), teacher, 0.4, temperature=temperature).log_probs.exp()
    return student, teacher, (student.detach() / temperature).softmax(-1), mu


def expected_loss(student: Tensor, teacher: Tensor, p: Tensor, mu: Tensor, **kwargs: float | None) -> Tensor:
    """Returns the mean of the routed loss over tokens and labels: min(mu, pi_S) accepted, the rest of mu replaced."""
    overlap, total = torch.minimum(mu, p), torch.zeros(ROWS, dtype=torch.float64)
    for token in range(VOCABULARY):
        at = torch.full((ROWS,), token)
        log_weight = torch.where(mu[:, token] > 0, (p / mu)[:, token].log(), 0.0)
        for label, share in ((True, overlap), (False, mu - overlap)):
            loss = routed_loss(student, teacher, at, log_weight, torch.full((ROWS,), label), **kwargs)
            total = total + share[:, token] * loss
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_mean_over_tokens_and_labels_is_the_reverse_kl_and_the_surprise_as_often_as_tokens_are_replaced(
    temperature: float,
) -> None:
    student, teacher, p, mu = pair(temperature)
    found = expected_loss(student, teacher, p, mu, temperature=temperature)
    replaced = (mu - torch.minimum(mu, p)).sum(-1)  # TV(mu, pi_S)
    assert (replaced > 0.05).any()
    surprise = cross_entropy(student, teacher.argmax(-1), temperature=temperature)
    expected = reverse_kl(student, teacher, temperature=temperature) + replaced * surprise
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(gradient(found, student), gradient(expected, student), rtol=1e-8, atol=1e-10)


def test_a_cap_of_one_is_saki_s_loss_without_weights_and_is_biased() -> None:
    student, teacher, p, mu = pair()
    q = teacher.softmax(-1)
    overlap = torch.minimum(mu, p)
    surprise = -p.gather(-1, teacher.argmax(-1, keepdim=True))[:, 0].log()
    by_hand = (overlap * (p / q).log()).sum(-1) + (mu - overlap).sum(-1) * surprise
    capped = expected_loss(student, teacher, p, mu, weight_cap=1.0)
    torch.testing.assert_close(capped.detach(), by_hand, rtol=1e-9, atol=1e-10)
    assert (capped - expected_loss(student, teacher, p, mu)).abs().max() > 0.01


def test_three_tokens_by_hand() -> None:
    student = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([[0.2, 0.7, 0.1]], dtype=torch.float64).log()

    def loss(token: int, log_weight: float, label: bool, **kwargs: float) -> Tensor:
        weight = torch.tensor([log_weight], dtype=torch.float64)
        return routed_loss(student, teacher, torch.tensor([token]), weight, torch.tensor([label]), **kwargs)

    # Token 0 is less probable under mu than under the student: it was accepted with certainty, and counts more.
    accepted = loss(0, math.log(0.5 / 0.4), True)
    assert accepted.item() == pytest.approx(1.25 * math.log(0.5 / 0.2))
    slope = 1.25 * math.log(0.5 / 0.2) * torch.tensor([[1 - 0.5, -0.3, -0.2]], dtype=torch.float64)
    torch.testing.assert_close(gradient(accepted, student), slope)
    # Token 1 is more probable under mu: its draft was accepted, with weight 1.
    assert loss(1, math.log(0.3 / 0.5), True).item() == pytest.approx(math.log(0.3 / 0.7))
    # A cap of the log ratio cuts the value and the gradient, and leaves the weight.
    capped = loss(0, math.log(0.5 / 0.4), True, log_ratio_cap=0.5)
    assert capped.item() == pytest.approx(1.25 * 0.5)
    torch.testing.assert_close(gradient(capped, student), slope * 0.5 / math.log(0.5 / 0.2))
    # Whatever replaced a draft, the target is token 1, the teacher's most probable one.
    for token in range(3):
        replaced = loss(token, -0.3, False)
        assert replaced.item() == pytest.approx(-math.log(0.3))
        expected = torch.tensor([[0.5, 0.3 - 1, 0.2]], dtype=torch.float64)
        torch.testing.assert_close(gradient(replaced, student), expected)


def test_the_target_is_the_most_probable_token_that_both_models_allow() -> None:
    student, teacher, p, mu = pair(excluded=True)
    best = teacher.argmax(-1)
    blocked = student.scatter(-1, best[:, None], -torch.inf)
    at, none = torch.zeros(ROWS, dtype=torch.long), torch.zeros(ROWS, dtype=torch.bool)
    loss = routed_loss(blocked, teacher, at, torch.zeros(ROWS), none)
    second = teacher.scatter(-1, best[:, None], -torch.inf).argmax(-1)
    torch.testing.assert_close(loss, cross_entropy(blocked, second))
    assert gradient(loss, student).isfinite().all()
    blocked = student.scatter(-1, best[:, None], -torch.inf)
    accepted = routed_loss(blocked, teacher, second, torch.zeros(ROWS), ~none)
    assert gradient(accepted, student).isfinite().all()
    assert expected_loss(student, teacher, p, mu).isfinite().all()


# ---- TOP-D's proximal teacher ----


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_sampled_loss_is_top_d_s_reward_with_the_other_sign(temperature: float) -> None:
    student, teacher = logits(9)
    alpha = 0.3
    p, q = (student.detach() / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    rho = q / p
    target = proximal_target(student, teacher, alpha, temperature=temperature)
    for token in range(VOCABULARY):
        at = torch.full((ROWS,), token)
        found = sampled_reverse_kl(student, target, at, torch.zeros(ROWS), temperature=temperature)
        reward = (alpha * rho[:, token] + 1 - alpha).log()
        torch.testing.assert_close(found, -reward, rtol=1e-9, atol=1e-10)
        log_prob = -cross_entropy(student, at, temperature=temperature)
        expected = gradient(-reward * log_prob, student)  # of a policy gradient with this reward
        torch.testing.assert_close(gradient(found, student), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("top_k", [None, 5])
def test_over_the_vocabulary_it_is_the_reverse_kl_to_the_mixture_held_constant(top_k: int | None) -> None:
    student, teacher = logits(10)
    target = proximal_target(student, teacher, 0.3, temperature=0.7)
    p, q = (student.detach() / 0.7).softmax(-1), (teacher / 0.7).softmax(-1)
    mixture = (0.3 * q + 0.7 * p).log() * 0.7
    found = reverse_kl(student, target, top_k=top_k, temperature=0.7)
    expected = reverse_kl(student, mixture, top_k=top_k, temperature=0.7)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradient(found, student), gradient(expected, student), rtol=1e-8, atol=1e-10)
    assert (found < reverse_kl(student, teacher, top_k=top_k, temperature=0.7)).all()


def test_a_token_that_the_teacher_excludes_costs_a_bounded_amount() -> None:
    student, teacher = logits(11)
    teacher = teacher.masked_fill(torch.arange(VOCABULARY) == 3, -torch.inf)
    target = proximal_target(student, teacher, 0.25, temperature=1.0)
    found = sampled_reverse_kl(student, target, torch.full((ROWS,), 3), torch.zeros(ROWS))
    torch.testing.assert_close(found, torch.full((ROWS,), -math.log(0.75), dtype=torch.float64))
    assert proximal_target(student, teacher, 1.0, temperature=1.0) is teacher


# ---- IW-OPD's position weights ----


def test_position_weights_by_hand() -> None:
    student = torch.tensor([[-1.0, -1.0, -2.0, -9.0], [-1.0, -1.0, -1.0, -1.0]])
    teacher = torch.tensor([[-2.0, -3.0, -1.0, -1.0], [-1.0, -1.0, -1.0, -1.0]])
    valid = torch.tensor([[True, True, True, False], [True, True, False, False]])
    found = position_weights(student, teacher, valid, 0.5)
    # |A| = 1, 2, 1 of a total of 4; models that agree have no discrepancy, and all weights are the first one.
    torch.testing.assert_close(found[0, :3], torch.tensor([1.5, 1 + 0.5 * 3 / 4, 1 + 0.5 * 1 / 4]))
    assert found[1, :2].tolist() == [1.5, 1.5]
    torch.testing.assert_close(position_weights(student, teacher, valid, 0.0), torch.ones(2, 4))


def test_after_a_token_that_the_teacher_excludes_the_weight_is_one() -> None:
    student = torch.full((1, 4), -1.0)
    teacher = torch.tensor([[-2.0, -torch.inf, -1.0, -1.5]])
    found = position_weights(student, teacher, torch.ones(1, 4, dtype=torch.bool), 0.5)
    assert found.tolist() == [[1.5, 1.5, 1.0, 1.0]]
