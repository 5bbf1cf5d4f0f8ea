"""Arguments of a TRB run: TRL's `DistillationConfig` with the KL budget, the rollout policy and pass@1 evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import DistillationConfig

from .schedule import KINDS, Schedule

ROLLOUT_POLICIES = ("trb", "student")

# Options of TRL's generation that change what is sampled, or how, and the value at which each does nothing. Blended
# rollouts come from trbext's own decoder, which samples the whole softmax at `temperature`.
_PLAIN_SAMPLING: dict[str, Any] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "cache_implementation": None,
    "do_sample": True,
}


@dataclass
class TRBConfig(DistillationConfig):  # type: ignore[misc]  # TRL is untyped
    """Configuration of `TRBTrainer`: everything TRL's `DistillationConfig` takes, and the fields below.

    The method and its letters are those of Trust-Region Behavior Blending (arXiv 2605.31159). TRL's `beta` keeps its
    meaning, the divergence of the loss (1.0 = reverse KL); the paper's coefficient beta is solved for, never set.

    Raises:
        ValueError: a field is out of range, or generation options contradict the KL budget.
    """

    _VALID_DICT_FIELDS: ClassVar = [*DistillationConfig._VALID_DICT_FIELDS, "trb_schedule_points"]

    # Defaults that differ from TRL's: a warmup of 50 steps is worth seeing step by step.
    logging_steps: float = field(
        default=1,
        metadata={"help": "Optimizer steps between two logs; a value below 1 is a share of the total steps."},
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036  (HfArgumentParser takes the second type)
        default="none",
        metadata={"help": "Where to report: none, all, wandb, tensorboard, trackio, ... or a list of them."},
    )

    rollout_policy: str = field(
        default="trb",
        metadata={
            "help": "Who writes the training prefixes: 'trb' = student and teacher blended within the KL budget, "
            "'student' = the student alone (vanilla on-policy distillation)."
        },
    )
    trb_epsilon: float = field(
        default=0.02,
        metadata={
            "help": "KL budget eps_0 at the first step, in nats per token: KL(behavior || student) never exceeds it. "
            "0 = pure student rollouts."
        },
    )
    trb_warmup_steps: float = field(
        default=50,
        metadata={
            "help": "Optimizer steps K until the budget reaches 0. An integer, or a value below 1 as a share of the "
            "total steps (rounded up)."
        },
    )
    trb_schedule: str = field(
        default="linear",
        metadata={
            "help": "How the budget shrinks over the warmup: 'linear' (the paper), 'cosine', 'constant' (it does not), "
            "'piecewise' (see trb_schedule_points)."
        },
    )
    trb_schedule_points: dict[Any, Any] | str | None = field(
        default=None,
        metadata={
            "help": "For trb_schedule 'piecewise': budgets in nats per token by optimizer step, as a mapping such as "
            '{"0": 0.05, "20": 0.01, "50": 0}; straight lines between them, constant after the last.'
        },
    )
    draft_length: str = field(
        default="auto",
        metadata={
            "help": "Tokens the student drafts for one pass of the teacher; the law of a rollout is the same: "
            "'auto' = chosen round by round by costs measured in the first step, 0 = lockstep, or a number."
        },
    )
    reuse_teacher_states: bool = field(
        default=True,
        metadata={
            "help": "Keep the teacher's last hidden states of blended rollouts, so that the loss needs no teacher "
            "forward of its own."
        },
    )
    teacher_states_gib: float = field(
        default=4.0,
        metadata={
            "help": "Memory for reuse_teacher_states on each process, GiB; where a step's rollouts need more, the loss "
            "asks the teacher again."
        },
    )
    loss_top_k: int | None = field(
        default=None,
        metadata={
            "help": "Tokens on which the reverse KL is estimated at each prefix: the student's k most probable ones, "
            "all others counted as one outcome. 16 is the paper's; unset = the whole vocabulary."
        },
    )
    eval_samples: int = field(
        default=1,
        metadata={"help": "Completions sampled per prompt for eval_pass@1, from the student alone at temperature 1."},
    )
    eval_verifier: str | None = field(
        default=None,
        metadata={
            "help": "Judge of the completions for eval_pass@1: 'numeric' (last number equals the column 'answer'), "
            "'demo' (the built-in task) or 'module:function', called as function(prompt, completion, row) -> bool. "
            "Unset = no pass@1."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollout_policy not in ROLLOUT_POLICIES:
            raise ValueError(
                f"rollout_policy must be one of {', '.join(ROLLOUT_POLICIES)}, got {self.rollout_policy!r}"
            )
        if not self.trb_epsilon >= 0:
            raise ValueError(f"trb_epsilon is a KL budget in nats and must be >= 0, got {self.trb_epsilon}")
        if self.trb_schedule not in KINDS:
            raise ValueError(f"trb_schedule must be one of {', '.join(KINDS)}, got {self.trb_schedule!r}")
        warmup = self.trb_warmup_steps
        if not 0 <= warmup < math.inf or (warmup >= 1 and warmup != int(warmup)):
            raise ValueError(
                f"trb_warmup_steps must be a whole number of optimizer steps or a share of them below 1, got {warmup}"
            )
        if self.trb_schedule_points is not None:
            self.trb_schedule_points = _points_by_step(self.trb_schedule_points)
        self.schedule(total_steps=0)  # the schedule's own checks, now rather than at the first step
        if self.draft_length != "auto" and not str(self.draft_length).isdecimal():
            raise ValueError(f"draft_length must be 'auto', 0 or a number of tokens, got {self.draft_length!r}")
        if not self.teacher_states_gib >= 0:
            raise ValueError(f"teacher_states_gib is a size in GiB and must be >= 0, got {self.teacher_states_gib}")
        if self.loss_top_k is not None and self.loss_top_k < 1:
            raise ValueError(f"loss_top_k must be at least 1, or unset for the whole vocabulary, got {self.loss_top_k}")
        if self.loss_top_k is not None and self.beta != 1.0:
            raise ValueError(f"loss_top_k estimates the reverse KL, which is beta = 1.0, got beta = {self.beta}")
        if self.eval_samples < 1:
            raise ValueError(f"eval_samples must be at least 1, got {self.eval_samples}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        if self.max_completion_length is None or self.max_completion_length < 1:
            raise ValueError(f"max_completion_length must be at least 1 token, got {self.max_completion_length}")
        if self.budget_active:
            for name, value in self.altered_sampling():
                raise ValueError(
                    f"{name}={value!r} cannot be combined with rollout_policy='trb': it changes the distribution that "
                    "is sampled, and the KL budget would be enforced on another one. Remove it, or set "
                    "rollout_policy='student'."
                )

    @property
    def budget_active(self) -> bool:
        """Whether any optimizer step may blend the teacher into its rollouts."""
        if self.rollout_policy != "trb":
            return False
        if isinstance(self.trb_schedule_points, dict):
            return any(epsilon > 0 for epsilon in self.trb_schedule_points.values())
        return self.trb_epsilon > 0 and (self.trb_schedule == "constant" or self.trb_warmup_steps > 0)

    def schedule(self, total_steps: int) -> Schedule:
        """The KL budget by optimizer step of a run of `total_steps`, which a warmup given as a share refers to."""
        warmup = self.trb_warmup_steps
        steps = math.ceil(warmup * total_steps) if warmup < 1 else int(warmup)
        points = self.trb_schedule_points
        return Schedule.make(
            self.trb_schedule, self.trb_epsilon, steps, points.items() if isinstance(points, dict) else None
        )

    def altered_sampling(self) -> Iterator[tuple[str, Any]]:
        """Generation options that make the sampled distribution another than the softmax at `temperature`."""
        for name in ("top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation"):
            if getattr(self, name) != _PLAIN_SAMPLING[name]:
                yield name, getattr(self, name)
        if isinstance(self.generation_kwargs, dict):
            for name, value in self.generation_kwargs.items():
                if name not in _PLAIN_SAMPLING or value != _PLAIN_SAMPLING[name]:
                    yield f"generation_kwargs[{name!r}]", value


def _points_by_step(points: dict[Any, Any] | str) -> dict[int, float]:
    if not isinstance(points, dict):
        raise ValueError(f'trb_schedule_points must be a mapping such as {{"0": 0.05, "50": 0}}, got {points!r}')
    try:
        return {int(step): float(points[step]) for step in sorted(points, key=int)}
    except (TypeError, ValueError):
        raise ValueError(f"trb_schedule_points must map optimizer steps to budgets in nats, got {points!r}") from None
