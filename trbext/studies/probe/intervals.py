"""Estimates shares, their paired differences, and how well a score tells right from wrong, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 1999


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; NaN if there is none."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        pairs = (("value", self.value), ("low", self.low), ("high", self.high))
        return {name: value if np.isfinite(value) else None for name, value in pairs}


NOTHING = Estimate(float("nan"), float("nan"), float("nan"))


def share(right: Sequence[bool]) -> Estimate:
    """Estimates a share with Wilson's interval (1927), which stays inside 0..1 and is valid at its ends."""
    if not right:
        return NOTHING
    found = stats.binomtest(sum(right), len(right)).proportion_ci(method="wilson")
    return Estimate(sum(right) / len(right), float(found.low), float(found.high))


def paired_difference(right: Sequence[bool], reference: Sequence[bool]) -> tuple[Estimate, float]:
    """Estimates the difference of two shares over the same prompts.

    Args:
        right: One entry per prompt.
        reference: One entry per prompt.

    Returns:
        The difference with a percentile bootstrap interval over prompts, and McNemar's exact p-value.
    """
    differences = np.array(right, dtype=np.float64) - np.array(reference, dtype=np.float64)
    won, lost = int((differences > 0).sum()), int((differences < 0).sum())
    p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    mean = float(differences.mean())
    if np.ptp(differences) == 0:  # nothing to resample
        return Estimate(mean, mean, mean), p
    found = stats.bootstrap((differences,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0)
    return Estimate(mean, float(found.confidence_interval.low), float(found.confidence_interval.high)), p


def auroc(scores: Sequence[float], right: Sequence[bool]) -> Estimate:
    """Estimates the probability that a right completion scores higher than a wrong one (Mann-Whitney).

    Ties count half. The interval resamples right and wrong completions separately (percentile bootstrap).

    Args:
        scores: One per completion.
        right: Whether each completion is right.

    Returns:
        The probability, NaN unless there are right and wrong completions. There is no interval if there is only one
        right or one wrong completion, or if the score separates them perfectly: every resample would, too.
    """
    values, is_right = np.array(scores), np.array(right, dtype=bool)
    good, bad = values[is_right], values[~is_right]
    if len(good) == 0 or len(bad) == 0:
        return NOTHING
    value = _area(good, bad)
    if len(good) < 2 or len(bad) < 2 or value in (0.0, 1.0):
        return Estimate(value, float("nan"), float("nan"))
    rng = np.random.default_rng(0)
    resampled = [_area(rng.choice(good, len(good)), rng.choice(bad, len(bad))) for _ in range(RESAMPLES)]
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def _area(good: NDArray[np.float64], bad: NDArray[np.float64]) -> float:
    ranks = stats.rankdata(np.concatenate([good, bad]))
    return float((ranks[: len(good)].sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad)))


def mean(values: Sequence[float]) -> Estimate:
    """Estimates the mean of the finite values with a percentile bootstrap interval over them."""
    finite = np.array([value for value in values if np.isfinite(value)])
    if len(finite) == 0:
        return NOTHING
    if len(finite) < 2 or np.ptp(finite) == 0:
        return Estimate(float(finite.mean()), float("nan"), float("nan"))
    found = stats.bootstrap((finite,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0).confidence_interval
    return Estimate(float(finite.mean()), float(found.low), float(found.high))
