"""Reads what a run says of TRB in its configuration: `actor_rollout_ref.rollout.custom.trb`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..training.schedule import Schedule
from ..vllm.engine import DRAFT_LENGTH

WHERE = "actor_rollout_ref.rollout.custom.trb"
OF_ROLLOUTS = ("teacher", "draft_length", "top_k", "repair")
OF_SCHEDULE = ("schedule", "epsilon", "warmup_steps", "points")


@dataclass(frozen=True)
class RolloutSettings:
    """What the rollouts of a run are drawn with.

    Args:
        teacher: A folder or a name on the Hub.
        schedule: The KL budget at each of verl's global steps, counted from 0.
        draft_length: Tokens that the student drafts for one pass of the teacher.
        top_k: Tokens of the teacher's distribution that come with each token of a rollout, for the loss; 0 is none.
        repair: Draws a rollout again from where the engine lost its drafts; False fails it.
    """

    teacher: str
    schedule: Schedule
    draft_length: int = DRAFT_LENGTH
    top_k: int = 16
    repair: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, str) or not self.teacher:
            raise ValueError(f"{WHERE}.teacher must be the teacher's path, got {self.teacher!r}")
        for name, least in (("draft_length", 1), ("top_k", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{WHERE}.{name} must be a whole number of at least {least}, got {value!r}")
        if not isinstance(self.repair, bool):
            raise ValueError(f"{WHERE}.repair must be true or false, got {self.repair!r}")

    @classmethod
    def of(cls, custom: Mapping[str, Any] | None) -> RolloutSettings:
        """Returns those of `actor_rollout_ref.rollout.custom`.

        Raises:
            ValueError: Nothing is said of TRB, a name is unknown, or a value does not fit. Names it.
        """
        given = dict((custom or {}).get("trb") or {})
        if not given:
            raise ValueError(f"{WHERE} must say what TRB draws with (hydra group trb), got nothing")
        unknown = sorted(given.keys() - {*OF_ROLLOUTS, *OF_SCHEDULE})
        if unknown:
            raise ValueError(f"{WHERE} has the names {', '.join(OF_ROLLOUTS + OF_SCHEDULE)}, got {unknown[0]}")
        kind = given.get("schedule", "linear")
        # Without a step named, those that fall would be at 0 at once. The points of "piecewise" are all of its budgets.
        needed = {"piecewise": ["points"], "linear": ["epsilon", "warmup_steps"], "cosine": ["epsilon", "warmup_steps"]}
        for name in ("teacher", *needed.get(str(kind), ["epsilon"])):
            if given.get(name) is None:
                raise ValueError(f"{WHERE}.{name} must be given, got nothing")
        epsilon, warmup_steps = (0 if given.get(name) is None else given[name] for name in ("epsilon", "warmup_steps"))
        try:
            schedule = Schedule.make(kind, epsilon, warmup_steps, given.get("points"))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{WHERE}: {error}") from None
        return cls(schedule=schedule, **{name: given[name] for name in OF_ROLLOUTS if name in given})
