"""Makes one number of a learning curve: at its end, at its best, over its area, or at equal cost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid

from ...training.metrics.metric_table import Better

Floats = NDArray[np.float64]


# Names of the views, and what each reads.
VIEWS = {
    "final": "mean of the last evaluations",
    "best": "the best evaluation of the run, as the paper selects checkpoints",
    "area": "area under the learning curve over steps, divided by their number: the mean over training",
    "equal_teacher_tokens": "the curve at as many teacher tokens as the cheapest run of the seed used in all",
    "equal_seconds": "the curve at as many seconds as the fastest run of the seed took in all",
}


EQUAL_COST = {"equal_teacher_tokens": "teacher_tokens", "equal_seconds": "seconds"}


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
    """Reads a learning curve in one view.

    Args:
        name: One of VIEWS.
        step: [E] optimizer steps of the evaluations.
        value: [E] the metric.
        costs: [E] cumulative costs, by kind.
        budgets: The cost at which views of equal cost read the curve, by kind.
        last: Evaluations that the view "final" averages.
        selection: [E] the metric that selects the checkpoint of the view "best", and its better direction.

    Returns:
        The number, in the unit of `value`; NaN without evaluations.
    """
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
    """Returns the mean of the `last` last evaluations."""
    return float(np.mean(value[-last:]))


def best(value: Floats, better: Better) -> int:
    """Returns the index of the best evaluation, the earliest of equal ones. NaN is the best only if all are NaN."""
    if np.isnan(value).all():
        return 0
    return int(np.nanargmax(value) if better == "higher" else np.nanargmin(value))


def area(step: Floats, value: Floats) -> float:
    """Returns the trapezoidal area under the curve divided by the steps it spans, in the unit of `value`."""
    if len(value) < 2:
        return float(value[0])
    return float(trapezoid(value, step) / (step[-1] - step[0]))


def at_cost(cost: Floats, value: Floats, budget: float) -> float:
    """Interpolates the curve linearly at the cumulative `cost` `budget`; NaN outside the curve.

    NaN also if nothing was counted, as of a teacher on a server.
    """
    if not cost[0] <= budget <= cost[-1] or cost[-1] == 0:
        return float("nan")
    return float(np.interp(budget, cost, value))
