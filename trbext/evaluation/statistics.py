"""Says how sure the figures of an evaluation are: intervals over prompts, and which checkpoints differ.

Prompts are the unit: completions of one prompt are alike. All checkpoints answer the same prompts, so they are compared
prompt by prompt, and every statistic is resampled with the same prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 2000
FLIPS = 20_000
LEVEL = 0.05
PART = 500  # flips computed at a time, for memory


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts, and its 95 % interval."""

    value: float
    low: float
    high: float


def estimate(values: Sequence[Floats]) -> Estimate:
    """Estimates the mean over benchmarks of the mean over prompts, with a bootstrap interval over prompts.

    The interval is that of percentiles. Of 30 prompts it covers the mean in about 93 % of cases.

    Args:
        values: [P] of each benchmark.
    """
    (found,) = _estimates([of_prompts[:, None] for of_prompts in values])
    return found


def _estimates(values: Sequence[Floats]) -> list[Estimate]:
    """Estimates m statistics over the same resamples of the prompts, from [P, m] of each benchmark."""
    means = sum(_counts(number, len(each)) @ each / len(each) / len(values) for number, each in enumerate(values))
    low, high = np.percentile(means, [100 * LEVEL / 2, 100 - 100 * LEVEL / 2], axis=0)
    center = np.mean([of_prompts.mean(0) for of_prompts in values], axis=0)
    return [Estimate(float(c), float(a), float(b)) for c, a, b in zip(center, low, high, strict=True)]


@lru_cache(maxsize=16)
def _counts(number: int, prompts: int) -> Floats:
    """[RESAMPLES, prompts]: how often each prompt of the benchmark of this number is in each resample."""
    rng = np.random.default_rng([number, prompts])
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES).astype(np.float64)


@dataclass(frozen=True)
class Difference:
    """Two checkpoints, compared prompt by prompt: `first` - `second`."""

    first: str
    second: str
    estimate: Estimate
    p_holm: float  # of a sign-flip test, corrected for all pairs

    @property
    def resolved(self) -> bool:
        """Whether they differ by more than chance: the test and the interval both exclude 0."""
        return self.p_holm < LEVEL and not self.estimate.low <= 0 <= self.estimate.high


def differences(values: Mapping[str, Sequence[Floats]]) -> list[Difference]:
    """Compares every pair of checkpoints.

    The p-value is that of random flips of the signs of the differences of prompts, which would be as likely if the two
    checkpoints were equal; it is at least 1 / 20,001.

    Args:
        values: Of each checkpoint, [P] of each benchmark.

    Returns:
        A difference per pair, in the order of the checkpoints.
    """
    pairs = list(combinations(values, 2))
    if not pairs:
        return []
    apart = [
        np.stack([values[first][number] - values[second][number] for first, second in pairs], 1)
        for number in range(len(next(iter(values.values()))))
    ]
    weighted = np.concatenate([of_prompts / len(of_prompts) / len(apart) for of_prompts in apart])
    observed, rng = np.abs(weighted.sum(0)), np.random.default_rng(0)
    as_large = np.ones(len(pairs))  # the signs as they are
    for _ in range(0, FLIPS, PART):
        signs = rng.integers(2, size=(PART, len(weighted))) * 2.0 - 1.0
        as_large += (np.abs(signs @ weighted) >= observed - 1e-12).sum(0)
    corrected = holm([float(count) / (FLIPS + 1) for count in as_large])
    estimates = _estimates(apart)
    return [Difference(*pair, found, p) for pair, found, p in zip(pairs, estimates, corrected, strict=True)]


def holm(p: Sequence[float]) -> list[float]:
    """Corrects p-values by Holm's step-down method (1979), which controls the chance of any false finding among
    them."""
    order = np.argsort(p, kind="stable")
    corrected, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[int(index)] = largest
    return corrected


@dataclass(frozen=True)
class Choice:
    """The checkpoint that the completions choose, and its pass@1."""

    checkpoint: str
    pass_at_1: Estimate


def paper_choice(values: Mapping[str, Sequence[Floats]]) -> Choice:
    """Chooses the checkpoint by all completions and reports it on the same ones, as the paper does: it is flattered.

    Args:
        values: Of each checkpoint, [P] of each benchmark: the share of right completions.
    """
    best = max(values, key=lambda name: _mean(values[name]))
    return Choice(best, estimate(values[best]))


def honest_choice(first: Mapping[str, Sequence[Floats]], second: Mapping[str, Sequence[Floats]]) -> Choice:
    """Chooses the checkpoint by one half of the completions, and reports it on the other half.

    Args:
        first: Of each checkpoint, [P] of each benchmark: the share of right completions of the half that chooses.
        second: Of the half that is reported.
    """
    best = max(first, key=lambda name: _mean(first[name]))
    return Choice(best, estimate(second[best]))


def _mean(values: Sequence[Floats]) -> float:
    return float(np.mean([of_prompts.mean() for of_prompts in values]))
