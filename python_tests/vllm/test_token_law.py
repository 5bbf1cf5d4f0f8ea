"""Checks the float64 law and the chi-square with which the tests of an engine judge it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from python_tests.vllm.chi_square import (
    FITS,
    REJECTED,
    ChiSquare,
    along_rollouts,
    assert_deviates,
    assert_follows,
    chi_square,
    first_three_tokens,
)
from python_tests.vllm.model_pairs import EOS, PROMPT, ModelPair, save_pair, save_unlike_pair
from python_tests.vllm.token_law import TokenLaw, blend_by_bisection
from trbext import reference

ROLLOUTS = 4000


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def law(pair: ModelPair) -> TokenLaw:
    return TokenLaw(pair.teacher, pair.student, pair.alignment)


def rollouts_of(law: TokenLaw, epsilon: float, tokens: int, temperature: float = 1.0) -> list[list[int]]:
    """Draws completions of `PROMPT` from the law itself, token by token."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.tensor([PROMPT] * ROLLOUTS)
    for _ in range(tokens):
        seen, which = rows.unique(dim=0, return_inverse=True)
        mu = law.after(seen, epsilon=epsilon, temperature=temperature).mu.exp()[which]
        drawn = torch.multinomial(mu, 1, generator=generator)
        rows = torch.cat([rows, drawn], 1)
    completions = rows[:, len(PROMPT) :].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in completions]


def test_the_bisection_agrees_with_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = 2 * torch.randn(2, 200, 64, generator=generator, dtype=torch.float64)
    epsilon = torch.tensor([0.0, 1e-3, 0.05, 0.2, torch.inf], dtype=torch.float64).repeat(40)
    found, expected = blend_by_bisection(a.log_softmax(-1), b.log_softmax(-1), epsilon), reference.blend(a, b, epsilon)
    assert (found.mu - expected.log_probs).abs().max() < 1e-6
    assert (found.beta - expected.beta).abs().max() < 1e-6
    assert (found.kl - expected.kl).abs().max() < 1e-6


def test_vocabularies_of_unlike_width_and_eos_become_one(tmp_path: Path) -> None:
    pair = save_unlike_pair(tmp_path)
    law = TokenLaw(pair.teacher, pair.student, pair.alignment)
    found = law.along(torch.tensor([PROMPT]), 2, epsilon=0.1, temperature=0.7)
    for model, log_probs in ((law._student, found.student), (law._teacher, found.teacher)):
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT])).logits[:, 1:]
        expected = pair.alignment.canonical(logits, 0.7) / 0.7
        assert torch.allclose(log_probs, expected.log_softmax(-1), atol=1e-12)
        assert (log_probs[..., 3] == -torch.inf).all()


@pytest.mark.parametrize("epsilon", [0.0, 0.05, torch.inf])
def test_tokens_of_the_law_fit_it_and_not_that_of_another_budget(law: TokenLaw, epsilon: float) -> None:
    tokens = rollouts_of(law, epsilon, 3)
    assert_follows(first_three_tokens(tokens, law, PROMPT, epsilon))
    assert_deviates(first_three_tokens(tokens, law, PROMPT, 0.3))
    some = tokens[:400]
    assert_follows(along_rollouts(some, law, [PROMPT] * 400, [epsilon] * 400))
    with pytest.raises(AssertionError):
        assert_follows(along_rollouts(some, law, [PROMPT] * 400, [0.5] * 400))


def test_temperature_is_part_of_the_law(law: TokenLaw) -> None:
    tokens = rollouts_of(law, 0.1, 3, temperature=0.7)
    assert_follows(first_three_tokens(tokens, law, PROMPT, 0.1, 0.7))
    assert_deviates(first_three_tokens(tokens, law, PROMPT, 0.1))


def test_chi_square_has_its_mean_and_sees_the_impossible() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.tensor([0.5, 0.3, 0.1, 0.0999, 0.0001, 0.0], dtype=torch.float64)
    draws = [torch.multinomial(probabilities, 1000, replacement=True, generator=generator) for _ in range(400)]
    found = [chi_square(draw, probabilities) for draw in draws]
    assert {one.df for one in found} == {3}  # the two rare outcomes are left out: together they expect 0.1 draws
    z = torch.tensor([one.z for one in found])
    assert abs(z.mean()) < 0.15
    assert abs(z.std() - 1) < 0.2
    assert chi_square(torch.tensor([0] * 500 + [5]), probabilities).statistic == float("inf")


def test_the_two_assertions_are_far_apart() -> None:
    between = ChiSquare(statistic=60 + (FITS + REJECTED) / 2 * 120**0.5, df=60)
    for assertion in (assert_follows, assert_deviates):
        with pytest.raises(AssertionError, match="df 60"):
            assertion(between)
