"""Schedules the KL budget: how far the behavior policy may be from the student at each step (arXiv 2605.31159).

A schedule is a pure function of the optimizer step, so a resumed run continues with exactly the same budgets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real

from ..limits import is_epsilon, not_an_epsilon

KINDS = ("linear", "cosine", "constant", "piecewise")


@dataclass(frozen=True)
class Schedule:
    """The KL budget as a function of the optimizer step k = 0, 1, ..: `schedule(k)`, nats per token.

    With eps_0 = `epsilon` and K = `warmup_steps`, the kinds are:

    - "linear": eps_0 (1 - k/K) for k < K, then 0, which is pure student rollouts. The paper's; K = 0 is 0 from the
      start.
    - "cosine": eps_0 (1 + cos(pi k/K)) / 2 for k < K, then 0.
    - "constant": eps_0 at every step, whatever K (the paper's fixed-epsilon baseline).
    - "piecewise": straight lines between `points`, constant before the first and after the last. It does not use
      `epsilon` and `warmup_steps`.

    Args:
        kind: One of these four.
        epsilon: eps_0 in nats per token; inf is the teacher itself. The default is from the paper's sweep.
        warmup_steps: K in optimizer steps. The default is from the paper's sweep.
        points: For "piecewise", pairs (step, epsilon) of increasing steps.

    Raises:
        ValueError: The kind is unknown; epsilon is negative or NaN; warmup_steps is negative; points are missing, out
            of order, have a negative or infinite epsilon, or are given to another kind.
        TypeError: warmup_steps or a step is not an int.
    """

    kind: str = "linear"
    epsilon: float = 0.02
    warmup_steps: int = 50
    points: tuple[tuple[int, float], ...] | None = None

    @classmethod
    def make(
        cls, kind: str, epsilon: float, warmup_steps: int, points: Iterable[Iterable[float]] | None = None
    ) -> Schedule:
        """Makes a schedule from the plain values of a configuration.

        Args:
            kind: As `Schedule`.
            epsilon: As `Schedule`, any number.
            warmup_steps: As `Schedule`.
            points: As `Schedule`, but pairs may be lists, as a YAML file gives them.

        Raises:
            ValueError: As `Schedule`, and for a point that is no pair or an epsilon that is no number.
            TypeError: As `Schedule`.
        """
        try:
            budget = float(epsilon)
        except (TypeError, ValueError):
            raise ValueError(not_an_epsilon(epsilon)) from None
        if points is None:
            return cls(kind, budget, warmup_steps)
        pairs = []
        for point in points if isinstance(points, Iterable) else (points,):
            try:
                step, value = point
                pair = (int(step), float(value))
                whole = pair[0] == step
            except (TypeError, ValueError, OverflowError):
                whole = False
            if not whole:
                raise ValueError(f"points must be pairs (whole step, epsilon), got {point!r}")
            pairs.append(pair)
        return cls(kind, budget, warmup_steps, tuple(pairs))

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"the schedule must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not is_epsilon(self.epsilon):
            raise ValueError(not_an_epsilon(self.epsilon))
        _check_step("warmup_steps", self.warmup_steps)
        if self.kind == "piecewise":
            _check_points(self.points or ())
        elif self.points is not None:
            raise ValueError(f'points belong only to the schedule "piecewise", got {self.points} with "{self.kind}"')

    def __call__(self, step: int) -> float:
        """Returns the budget at optimizer step `step`, 0-based: step 0 runs with eps_0, step K with 0."""
        _check_step("step", step)
        if self.points is not None:
            return _interpolate(self.points, step)
        if self.kind == "constant":
            return self.epsilon
        if step >= self.warmup_steps:
            return 0.0
        progress = step / self.warmup_steps
        return self.epsilon * (1 - progress if self.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2)


def check_duration(name: str, value: float) -> None:
    """Checks that `value` is a whole number of optimizer steps, or a share of the run below 1.

    Raises:
        ValueError: It is neither; the error calls it `name`.
    """
    if not isinstance(value, Real) or not 0 <= value < math.inf or (value >= 1 and value != int(value)):
        raise ValueError(f"{name} must be a whole number of optimizer steps or a share of them below 1, got {value!r}")


def duration(value: float, total_steps: int) -> int:
    """Returns the optimizer steps that `value` means in a run of `total_steps`: itself, or a share below 1, rounded
    up."""
    return math.ceil(value * total_steps) if value < 1 else int(value)


def decayed(start: float, step: int, steps: int) -> float:
    """Returns a value at optimizer step `step`, which falls from `start` at step 0 to 0 at step `steps`, and then is
    0."""
    return start * (1 - step / steps) if step < steps else 0.0


def _check_step(name: str, step: int) -> None:
    if isinstance(step, bool) or not isinstance(step, int):
        raise TypeError(f"{name} must be an int, a number of optimizer steps, got {step!r}")
    if step < 0:
        raise ValueError(f"{name} must be >= 0, got {step}")


def _check_points(points: tuple[tuple[int, float], ...]) -> None:
    if not points:
        raise ValueError('the schedule "piecewise" needs at least one point (step, epsilon), got none')
    for step, epsilon in points:
        _check_step("the step of a schedule point", step)
        if not 0 <= epsilon < math.inf:
            raise ValueError(f"the epsilon of a schedule point must be >= 0 and finite, got {epsilon} at step {step}")
    for (before, _), (after, _) in pairwise(points):
        if after <= before:
            raise ValueError(f"the steps of schedule points must increase, got {before} before {after}")


def _interpolate(points: tuple[tuple[int, float], ...], step: int) -> float:
    if step <= points[0][0]:
        return points[0][1]
    for (start, first), (end, last) in pairwise(points):
        if step < end:
            return first + (last - first) * (step - start) / (end - start)
    return points[-1][1]
