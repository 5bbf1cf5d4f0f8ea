"""Compares the tokens of rollouts with their law, by chi-square.

A completion that has ended goes on with the outcome `width`, one more than the last token id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from python_tests.vllm.token_law import TokenLaw

LEAST_EXPECTED = 5.0  # bins that expect less are put together
BINS = 40  # of the uniforms of `along_rollouts`
FITS = 4.0  # standard deviations of chi-square up to which the tokens follow the law
REJECTED = 30.0  # and from which they certainly do not


@dataclass(frozen=True)
class ChiSquare:
    """A statistic, and its degrees of freedom."""

    statistic: float
    df: int

    @property
    def z(self) -> float:
        """The statistic, less its mean, in units of its standard deviation."""
        return (self.statistic - self.df) / (2 * self.df) ** 0.5

    def __str__(self) -> str:
        return f"z {self.z:.2f} (df {self.df})"


def chi_square(outcomes: Tensor, probabilities: Tensor) -> ChiSquare:
    """Tests independent outcomes, [n] int64, against their probabilities [m]."""
    counts = torch.bincount(outcomes, minlength=len(probabilities)).double()
    expected = probabilities.double() * len(outcomes)
    large = expected >= LEAST_EXPECTED
    df = int(large.sum())
    if bool((counts[expected == 0] > 0).any()):
        return ChiSquare(float("inf"), df)
    counts, expected = (torch.cat([part[large], part[~large].sum()[None]]) for part in (counts, expected))
    if expected[-1] < LEAST_EXPECTED:  # even together these are too rare
        counts, expected, df = counts[:-1], expected[:-1], df - 1
    return ChiSquare(float(((counts - expected) ** 2 / expected).sum()), df)


@cache
def _law_of_three(
    law: TokenLaw, prompt: tuple[int, ...], epsilon: float, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The probabilities of the first token y1, of the pair (y1, y2), flattened, and of y3 by itself."""
    width, stop = law.alignment.width, law.alignment.stop
    ids = torch.arange(width)
    ended = torch.zeros(width + 1, dtype=torch.float64)
    ended[width] = 1.0

    def after(completions: Tensor) -> Tensor:
        prefixes = torch.cat([torch.tensor(prompt).expand(len(completions), -1), completions], 1)
        mu = law.after(prefixes, epsilon=epsilon, temperature=temperature).mu.exp()
        return torch.nn.functional.pad(mu, (0, 1))

    first = after(torch.empty((1, 0), dtype=torch.int64))[0]
    second = after(ids[:, None])
    second[stop] = ended
    pair = first[:width, None] * second
    third = after(torch.cartesian_prod(ids, ids)).view(width, width, width + 1)
    third[:, stop] = ended
    return first, pair.flatten(), (pair[:, :width, None] * third).sum((0, 1)) + pair[:, width].sum() * ended


def first_three_tokens(
    tokens: Sequence[Sequence[int]], law: TokenLaw, prompt: Sequence[int], epsilon: float, temperature: float = 1.0
) -> dict[str, ChiSquare]:
    """Tests completions of one prompt: their first token, their first two, and their third by itself.

    Args:
        tokens: At least three of each completion that has not ended before.
        law: Of the models.
        prompt: Token ids.
        epsilon: KL budget, nats per token.
        temperature: Of the rollouts.
    """
    width = law.alignment.width
    first, pair, third = _law_of_three(law, tuple(prompt), epsilon, temperature)
    y1, y2, y3 = torch.tensor([[*row, width, width, width][:3] for row in tokens]).unbind(1)
    return {
        "y1": chi_square(y1, first),
        "(y1, y2)": chi_square(y1 * (width + 1) + y2, pair),
        "y3": chi_square(y3, third),
    }


def first_token(
    tokens: Sequence[Sequence[int]], law: TokenLaw, prompt: Sequence[int], epsilon: float, temperature: float = 1.0
) -> ChiSquare:
    """Tests the first token of completions of one prompt."""
    mu = law.after(torch.tensor([list(prompt)]), epsilon=epsilon, temperature=temperature).mu[0].exp()
    return chi_square(torch.tensor([row[0] for row in tokens]), mu)


def along_rollouts(
    tokens: Sequence[Sequence[int]],
    law: TokenLaw,
    prompts: Sequence[Sequence[int]],
    epsilon: Sequence[float],
    temperature: float = 1.0,
) -> ChiSquare:
    """Tests every token of completions of any length, each against mu after its own prefix.

    The tokens of a prefix are ordered by log pi_T - log pi_S, largest first. If y follows mu, then F(y-) + U mu(y) is
    uniform and independent of the tokens before y, where F(y-) is the mass of all tokens ordered before y, and U is
    another uniform. Tokens of the teacher make it small at every prefix, so their deviations add up.
    """
    generator = torch.Generator().manual_seed(0)
    uniforms = []
    for begin in sorted({len(prompt) for prompt in prompts}):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == begin]
        drawn = pad_sequence([torch.tensor(tokens[row]) for row in rows], batch_first=True, padding_value=-1)
        sequences = torch.cat([torch.tensor([list(prompts[row]) for row in rows]), drawn.clamp(min=0)], 1)
        budgets = torch.tensor([epsilon[row] for row in rows])
        found = law.along(sequences[:, :-1], begin, epsilon=budgets, temperature=temperature)
        mu, log_ratio = found.mu.exp(), (found.teacher - found.student).nan_to_num(-torch.inf)
        index = drawn.clamp(min=0)[..., None]
        before = log_ratio > log_ratio.gather(-1, index)
        share = torch.rand(drawn.shape, dtype=torch.float64, generator=generator)
        uniforms.append(((mu * before).sum(-1) + share * mu.gather(-1, index)[..., 0])[drawn >= 0])
    bins = (torch.cat(uniforms) * BINS).long().clamp(max=BINS - 1)
    return chi_square(bins, torch.full((BINS,), 1 / BINS))


def assert_follows(found: Mapping[str, ChiSquare] | ChiSquare) -> None:
    """Asserts that no statistic is too large for tokens that follow the law."""
    named = {"all tokens": found} if isinstance(found, ChiSquare) else found
    assert all(one.z < FITS for one in named.values()), {name: str(one) for name, one in named.items()}


def assert_deviates(found: Mapping[str, ChiSquare] | ChiSquare) -> None:
    """Asserts that at least one statistic proves that the tokens do not follow the law."""
    named = {"all tokens": found} if isinstance(found, ChiSquare) else found
    assert any(one.z > REJECTED for one in named.values()), {name: str(one) for name, one in named.items()}
