"""Defines the fields of a run that say how long its rollouts may be at each optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class LengthFields:
    """Short rollouts first (FastOPD), by a plan or by progress; rules are in `trbext/training/rollout_length.py`."""

    rollout_length_points: dict[Any, Any] | str | None = field(
        default=None,
        metadata={
            "help": "FastOPD: the longest rollouts in tokens by optimizer step, as a mapping such as "
            '{"0": 512, "100": 2048}; each holds up to the next. Unset = max_completion_length, as in evaluation.'
        },
    )
    rollout_length_start: int | None = field(
        default=None,
        metadata={
            "help": "Adaptive FastOPD: the longest rollouts at the first step, in tokens. They grow to "
            "max_completion_length whenever learning near their end has stalled. Unset = off."
        },
    )
    rollout_length_growth: float = field(
        default=2.0, metadata={"help": "For rollout_length_start: factor by which the length grows, above 1."}
    )
    rollout_length_window: int = field(
        default=10, metadata={"help": "For rollout_length_start: optimizer steps over which progress is averaged."}
    )
    rollout_length_plateau: float = field(
        default=0.1,
        metadata={
            "help": "For rollout_length_start: learning has stalled if the last window brought at most this share of "
            "the progress made at the present length, 0 to below 1."
        },
    )
    rollout_length_use: float = field(
        default=0.5,
        metadata={
            "help": "For rollout_length_start: the share of rollouts that must reach the present length, above 0 to 1."
        },
    )

    @property
    def lengths_by_step(self) -> dict[int, int]:
        """The fixed plan, from step 0 on; empty if there is none."""
        points = self.rollout_length_points
        return {int(step): int(points[step]) for step in sorted(points, key=int)} if isinstance(points, dict) else {}

    def check_length(self) -> None:
        """Checks these fields.

        Raises:
            ValueError: One is out of range, or does not fit another.
        """
        for reason in self._wrong_length():
            raise ValueError(reason)

    def _wrong_length(self) -> Iterator[str]:
        given: Any = self  # TRL's fields are beside these
        longest, points, start = given.max_completion_length, self.rollout_length_points, self.rollout_length_start
        if points is not None:
            yield from _wrong_points(points, longest)
        if start is not None and start >= longest:
            yield f"rollout_length_start must be below max_completion_length = {longest}, got {start}"
        if points is not None and start is not None:
            yield "rollout_length_points is a fixed plan, and rollout_length_start adapts: leave one of them out"
        if not 1 < self.rollout_length_growth < math.inf:
            yield f"rollout_length_growth must be a number > 1, and finite, got {self.rollout_length_growth}"
        if not 0 <= self.rollout_length_plateau < 1:
            yield f"rollout_length_plateau must be a share with 0 <= x < 1, got {self.rollout_length_plateau}"
        if not 0 < self.rollout_length_use <= 1:
            yield f"rollout_length_use must be a share with 0 < x <= 1, got {self.rollout_length_use}"
        if start is not None and given.loss_prefix_tokens is not None:
            yield (
                "rollout_length_start looks at the end of the rollouts, which loss_prefix_tokens="
                f"{given.loss_prefix_tokens} cuts off: leave one of them out"
            )
        chosen = "rollout_length_points" if points is not None else "rollout_length_start"
        if points is not None or start is not None:
            for name, value in given.altered_sampling():
                yield f"{chosen} is of rollouts that trbext decodes, and {name}={value!r} leaves them to TRL"


def _wrong_points(points: Any, longest: int) -> Iterator[str]:
    name = "rollout_length_points"
    if not isinstance(points, dict) or not points:
        yield f'{name} must be a mapping such as {{"0": 512, "100": 2048}}, got {points!r}'
        return
    for step, tokens in points.items():
        whole = all(str(value).isdecimal() for value in (step, tokens))
        if not whole or not 1 <= int(tokens) <= longest:
            yield (
                f"{name} must map optimizer steps to 1 up to max_completion_length = {longest} tokens, got "
                f"{step!r}: {tokens!r}"
            )
            return
    if len({int(step) for step in points}) < len(points):
        yield f"{name} must have each step once, got {', '.join(map(repr, points))}"
    if "0" not in map(str, points):
        yield f"{name} must begin at step 0, got {', '.join(map(str, points))}"
