"""Views of a learning curve, and what differences paired by seed say. Pure functions of numbers.

A view makes one number of a run. Runs of equal seeds saw the same prompts in the same order, so differences are taken
within a seed and n is the number of seeds. Two procedures read them, and a difference is called resolved only where
both agree: a bootstrap interval of the mean (BCa, Efron 1987; it tells the size, but from 5 to 10 seeds it covers less
than its nominal 95 %, see `interval`), and the exact sign-flip test (valid at any n if differences without an effect
are symmetric about 0), corrected by Holm for all comparisons of a view.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import trapezoid

Floats = NDArray[np.float64]
Better = Literal["higher", "lower"]

# Names of the views, and what each reads.
VIEWS = {
    "final": "mean of the last evaluations",
    "best": "the best evaluation of the run, as the paper selects checkpoints",
    "area": "area under the learning curve over steps, divided by their number: the mean over training",
    "equal_teacher_tokens": "the curve at as many teacher tokens as the cheapest run of the seed used in all",
    "equal_seconds": "the curve at as many seconds as the fastest run of the seed took in all",
}
EQUAL_COST = {"equal_teacher_tokens": "teacher_tokens", "equal_seconds": "seconds"}

LEVEL = 0.05
RESAMPLES = 9999
EXACT_UP_TO = 16  # seeds: 2^16 sign patterns


def view(
    name: str,
    step: Floats,
    value: Floats,
    *,
    costs: Mapping[str, Floats],
    budgets: Mapping[str, float],
    last: int,
    selection: tuple[Floats, Better],
) -> float:
    """One number of one run; see VIEWS. All arrays are [E], over its evaluations."""
    if len(value) == 0:
        return float("nan")
    if name == "final":
        return final(value, last)
    if name == "best":
        return float(value[best(*selection)])
    if name == "area":
        return area(step, value)
    cost = EQUAL_COST[name]
    return at_cost(costs[cost], value, budgets[cost])


def final(value: Floats, last: int) -> float:
    """Mean of the `last` last evaluations."""
    return float(np.mean(value[-last:]))


def best(value: Floats, better: Better) -> int:
    """Index of the best evaluation, the earliest of equal ones. NaN is never the best unless there is nothing else."""
    if np.isnan(value).all():
        return 0
    return int(np.nanargmax(value) if better == "higher" else np.nanargmin(value))


def area(step: Floats, value: Floats) -> float:
    """Trapezoidal area under the curve divided by the steps it spans, in units of `value`."""
    if len(value) < 2:
        return float(value[0])
    return float(trapezoid(value, step) / (step[-1] - step[0]))


def at_cost(cost: Floats, value: Floats, budget: float) -> float:
    """The curve, straight between evaluations, where the cumulative `cost` is `budget`; NaN outside the curve."""
    if not cost[0] <= budget <= cost[-1]:
        return float("nan")
    return float(np.interp(budget, cost, value))


@dataclass(frozen=True)
class Contrast:
    """A run against its reference, in one view of one metric; `mean` is run - reference in the metric's unit."""

    run: str
    reference: str
    n: int  # seeds
    mean: float
    low: float  # of the interval; NaN below two seeds
    high: float
    p: float  # exact sign-flip test, two-sided
    p_holm: float  # corrected for all contrasts of the view

    @property
    def resolved(self) -> bool:
        """Whether test and interval both exclude 0."""
        return self.p_holm < LEVEL and not self.low <= 0 <= self.high


def contrasts(values: Mapping[tuple[str, int], float], pairs: Sequence[tuple[str, str]]) -> list[Contrast]:
    """Every pair (run, reference) compared over the seeds that both finished with a finite value.

    values: by (run, seed), of one view.
    """
    found = []
    for run, reference in pairs:
        differences = paired(values, run, reference)
        low, high = interval(differences)
        mean = float(differences.mean()) if len(differences) else float("nan")
        found.append(Contrast(run, reference, len(differences), mean, low, high, sign_flip_p(differences), 1.0))
    corrected = holm([contrast.p for contrast in found])
    return [
        Contrast(c.run, c.reference, c.n, c.mean, c.low, c.high, c.p, p) for c, p in zip(found, corrected, strict=True)
    ]


def paired(values: Mapping[tuple[str, int], float], run: str, reference: str) -> Floats:
    """run - reference within each seed where both are finite."""
    seeds = sorted(seed for label, seed in values if label == run)
    found = [values[run, seed] - values.get((reference, seed), np.nan) for seed in seeds]
    return np.array([difference for difference in found if np.isfinite(difference)])


def interval(differences: Floats, level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the mean difference: BCa, 9999 resamples of the seeds, always the same ones.

    Of normal differences, it covers the mean in about 85 % of studies with 5 seeds, 89 % with 8 and 91 % with 10
    (`python_tests/test_compare_statistics.py` measures it). NaN below two seeds.
    """
    if len(differences) < 2:
        return float("nan"), float("nan")
    if np.ptp(differences) == 0:  # nothing to resample: BCa would divide by the spread
        return float(differences[0]), float(differences[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (differences,), np.mean, confidence_level=level, n_resamples=RESAMPLES, method="BCa", rng=0
        ).confidence_interval
    if not np.isfinite(found.low + found.high):  # BCa gives up where the bootstrap distribution is a few atoms
        found = stats.bootstrap(
            (differences,), np.mean, confidence_level=level, n_resamples=RESAMPLES, method="percentile", rng=0
        ).confidence_interval
    return float(found.low), float(found.high)


def sign_flip_p(differences: Floats) -> float:
    """Two-sided p of the mean under flips of the signs of the differences: exact to 16 seeds, else 65,536 random flips.

    It cannot be below 2^(1-n), so it is 1 below two seeds.
    """
    if len(differences) < 2:
        return 1.0
    found = stats.permutation_test(
        (differences, np.zeros_like(differences)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=2**EXACT_UP_TO,
        vectorized=True,
        rng=0,
    )
    return float(found.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): controls the chance of any false finding among them."""
    order = np.argsort(p, kind="stable")
    corrected, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[int(index)] = largest
    return corrected


def smallest_p(seeds: int, comparisons: int) -> float:
    """The smallest Holm-corrected p that `seeds` can give to the strongest of `comparisons`."""
    return min(1.0, comparisons * 2.0 ** (1 - seeds))


def seeds_needed(comparisons: int) -> int:
    """The number of seeds from which `smallest_p` is below the level."""
    seeds = 2
    while smallest_p(seeds, comparisons) >= LEVEL:
        seeds += 1
    return seeds
