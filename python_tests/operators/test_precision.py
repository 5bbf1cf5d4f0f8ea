"""Rows of which rounding once cost the answer its digits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from python_tests.operators.devices import Operators
from trbext import TopK, reference, reference_top_k

pytestmark = pytest.mark.on_ptx

LOWEST = torch.finfo(torch.float32).min  # what models are masked with where -inf would do


# Beside an offset of 1e30, or beside a token of that size that the other model masks, logits keep no digits.
@pytest.mark.nightly_if(case=lambda trb, temperature, **_: trb.interpreted and (trb.arch == 80) != (temperature == 1.0))
@pytest.mark.parametrize("temperature", [1.0, 1.3])
@pytest.mark.parametrize(
    ("student", "teacher", "epsilon"),
    [
        ([0.0, 0.0, -torch.inf], [0.0, 1.0, 1e30], 0.01),
        ([0.0, 1.0, 1e30], [0.0, 0.0, -torch.inf], 1e31),
        ([1e30, 1e30], [0.0, 3.0], 0.1),
        ([0.0, 3.0], [1e30, 1e30], 0.1),
        ([1e30, 1e30, -torch.inf, -torch.inf], [-torch.inf, -torch.inf, 1e30, 1e30], 0.1),
        # mu lives where neither model has its largest logit of the common support.
        ([LOWEST, LOWEST, 1.0, 0.0, -1.0], [0.0, 1.0, LOWEST, LOWEST, LOWEST], 0.5),
        ([LOWEST, 1.0, 0.0, -1.0], [0.0, LOWEST, LOWEST, LOWEST], 0.02),
        # The answer is the student, whose tokens the teacher masks.
        ([1e30, 1e30, 0.0], [-torch.inf, -torch.inf, 0.0], 0.1),
        ([0.0, 1.0, 2.0, -1e30], [-torch.inf, -torch.inf, -torch.inf, 0.0], 0.1),
        # The answer is the teacher, whose likeliest token the student masks.
        ([LOWEST, -5.0, 0.0], [0.0, -3.0, -10.0], torch.inf),
    ],
)
def test_huge_logits_of_other_tokens_cost_no_digits(
    trb: Operators, student: list[float], teacher: list[float], epsilon: float, temperature: float
) -> None:
    rows = torch.tensor([student]), torch.tensor([teacher])
    got = trb.blend(*rows, epsilon, temperature=temperature)
    expected = reference.solve(*rows, epsilon, temperature=temperature)
    assert got.beta.item() == pytest.approx(expected.beta.item(), rel=3e-4)
    assert got.kl.item() == pytest.approx(expected.kl.item(), rel=3e-4)
    log_mu = reference.behavior_log_probs(*rows, got.beta, temperature)
    assert torch.allclose(got.log_probs.double(), log_mu, atol=1e-5, rtol=1e-6)
    solved = trb.solve(*rows, epsilon, temperature=temperature)
    assert torch.equal(solved.beta, got.beta)
    models = [(row.double() / temperature).log_softmax(-1) for row in rows]
    uniform = torch.tensor([0.05, 0.6, 0.95], dtype=torch.float64)
    drawn = trb.sample(*(row.expand(3, -1) for row in rows), epsilon, uniform=uniform, temperature=temperature)
    for i, token in enumerate(drawn.token.tolist()):
        assert_log_probs_are([values[i] for values in drawn[1:4]], [log_mu, *models], token)
    assert_a_draft_follows_the_law(trb, rows, epsilon, temperature, log_mu.exp(), models)


def assert_log_probs_are(got: Sequence[Tensor], expected: Sequence[Tensor], token: int) -> None:
    for value, log_p in zip(got, expected, strict=True):
        assert value.item() == pytest.approx(log_p[0, token].item(), rel=1e-6, abs=1e-5)


def assert_a_draft_follows_the_law(
    trb: Operators, rows: Sequence[Tensor], epsilon: float, temperature: float, mu: Tensor, models: Sequence[Tensor]
) -> None:
    """A draft is accepted with probability min(1, mu / pi_S), and else replaced by a token of max(mu - pi_S, 0)."""
    pi = models[0].exp()
    excess = (mu - pi).clamp(min=0.0)[0]
    chances = [(draft, min(1.0, float(mu[0, draft] / pi[0, draft]))) for draft in pi[0].nonzero()[:, 0].tolist()]
    cases = [(draft, u, u < p) for draft, p in chances for u in (p - 1e-3, p + 1e-3) if 0 <= u < 1]
    verified = trb.verify(
        *(row.expand(len(cases), -1) for row in rows),
        torch.tensor([draft for draft, _, _ in cases], dtype=torch.int32),
        torch.arange(len(cases) + 1, dtype=torch.int32),
        epsilon,
        temperature=temperature,
        accept_uniform=torch.tensor([u for _, u, _ in cases], dtype=torch.float64),
        draw_uniform=torch.full((len(cases),), 0.5, dtype=torch.float64),
        width=1,
        log_probs=True,
    )
    for i, (draft, _, accepted) in enumerate(cases):
        token = int(verified.tokens[i])
        assert bool(verified.accepted[i]) == accepted, draft
        assert token == draft if accepted else excess[token] > 0 or float(excess.sum()) < 1e-6
        assert_log_probs_are(list(verified.log_probs[i, 0]), [*models, mu.log()], token)


@pytest.mark.parametrize(
    ("student", "teacher", "k", "epsilon"),
    [
        ([LOWEST, LOWEST, 1.0, 0.0, -1.0], [0.0, 1.0, LOWEST, LOWEST, LOWEST], 5, 0.5),
        ([LOWEST, 1.0, 0.0, -1.0], [0.0, LOWEST, LOWEST, LOWEST], 4, 0.02),
        ([0.0, 1.0, LOWEST, LOWEST], [LOWEST, LOWEST, 0.0, -9.0], 3, 0.1),  # a rest of tokens that the student masks
        ([0.0, 1.0, 2.0, -1e30], [-torch.inf, -torch.inf, -torch.inf, 0.0], 4, 0.1),
        ([1e30, 0.0, 1.0, 2.0], [0.0, -1.0, -1.0, -1.0], 1, torch.inf),  # a rest far below a listed token
    ],
)
def test_huge_logits_beside_k_tokens_cost_no_digits(
    trb: Operators, student: list[float], teacher: list[float], k: int, epsilon: float
) -> None:
    row, log_probs = torch.tensor([student]), torch.tensor([teacher]).log_softmax(-1)
    top = TopK(torch.arange(k)[None], log_probs[:, :k].contiguous())
    got, expected = trb.blend(row, top, epsilon), reference_top_k.solve(row, top, epsilon)
    assert got.beta.item() == pytest.approx(expected.beta.item(), rel=3e-4)
    assert got.kl.item() == pytest.approx(expected.kl.item(), rel=3e-4, abs=1e-9)
    log_mu = reference_top_k.behavior_log_probs(row, top, got.beta)
    assert torch.allclose(got.log_probs.double(), log_mu, atol=1e-5, rtol=1e-6)
    drawn = trb.sample(row, top, epsilon, uniform=torch.tensor([0.6], dtype=torch.float64))
    implied = reference_top_k.implied_teacher(row, top)
    for of_token, log_p in zip(drawn[1:4], (log_mu, row.double().log_softmax(-1), implied), strict=True):
        assert of_token.item() == pytest.approx(log_p[0, drawn.token].item(), rel=1e-6, abs=1e-5)


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


def test_the_reference_keeps_the_digits_of_tokens_that_both_models_mask_apart() -> None:
    """Between -3.4e38 of one model and as much of the other, mu is pi_S^(1 - beta) on the student's tokens."""
    student, teacher = torch.tensor([LOWEST, LOWEST, 1.0, 0.0, -1.0]), torch.tensor([0.0, 1.0, *[LOWEST] * 3])
    own = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    for beta in (1e-40, 1e-20, 0.1, 0.4):
        log_mu = reference.behavior_log_probs(student, teacher, torch.tensor(beta, dtype=torch.float64))
        assert torch.allclose(log_mu[2:], ((1 - beta) * own).log_softmax(-1), rtol=1e-12)
        assert (log_mu[:2] < -1e37).all()


@pytest.mark.parametrize("bits", [0x7FC00001, 0x7FFFFFFF, -0x3FFFFF])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, torch.inf])
def test_a_nan_is_a_fault_whatever_its_payload(trb: Operators, bits: int, epsilon: float) -> None:
    """Added to an exponent, a payload's bits became those of an ordinary weight."""
    rows = torch.randn(2, 2, 1100, generator=torch.Generator().manual_seed(0))
    rows.view(torch.int32)[0, 0, 500] = bits
    rows.view(torch.int32)[1, 1, 1023] = bits
    solved = trb.solve(*rows, epsilon)
    assert solved.beta.isnan().all()
    assert solved.kl.isnan().all()
    drawn = trb.sample(*rows, epsilon, uniform=torch.full((2,), 0.5, dtype=torch.float64))
    assert drawn.token.tolist() == [-1, -1]
