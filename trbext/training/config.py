"""Configures a TRB run: TRL's `DistillationConfig` with the KL budget, the rollout policy and pass@1 evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from trl import DistillationConfig

from ..limits import is_epsilon, not_an_epsilon
from ..rollout import Policy
from ..rollout.plain_sampling import PLAIN_SAMPLING
from .fields.checks import (
    check_mappings,
    check_optimization,
    check_ranges,
    check_reporters,
    check_template_options,
    device_has_bf16,
)
from .fields.decoding import DecodingFields
from .fields.engine import EngineFields, check_engine
from .fields.length import LengthFields
from .fields.loss import LossFields
from .fields.policy import PolicyFields
from .fields.supervision import SupervisionFields
from .fields.teacher import TeacherFields
from .objective import Objective
from .schedule import KINDS, Schedule, check_duration, decayed, duration

# Options of TRL's generation that change what is sampled, or how. Blended rollouts are decoded by trbext itself.
_PLAIN_SAMPLING: dict[str, tuple[Any, ...]] = {
    **PLAIN_SAMPLING,
    "num_return_sequences": (1, None),
    "cache_implementation": (None,),
    "do_sample": (True,),
}
# What a rollout needs of other options of generation, and why.
_ENDS = "completions end at the EOS ids of both models"
_OF_A_ROLLOUT: dict[str, tuple[int | None, str]] = {
    "num_return_sequences": (1, "a step decodes one completion per prompt, and rollouts_per_prompt repeats prompts"),
    "eos_token_id": (None, _ENDS),
    "stop_strings": (None, _ENDS),
}
# What transformers would do that a step, or its repetition, does not survive.
_REFUSED = {
    "auto_find_batch_size": "the rollouts of a step are made for one batch size; for less memory, lower "
    "rollout_batch_size or per_device_train_batch_size",
    "ignore_data_skip": "a resumed run repeats its own steps, on the same prompts",
}
# They leave the law of a token as it is, and only make TRL decode.
_OF_THE_CACHE = (
    *("cache_implementation", "generation_kwargs['cache_implementation']", "generation_kwargs['cache_config']"),
    "generation_kwargs['use_cache']",
)


@dataclass
class TRBConfig(
    DecodingFields,
    EngineFields,
    LengthFields,
    LossFields,
    PolicyFields,
    SupervisionFields,
    TeacherFields,
    DistillationConfig,  # type: ignore[misc]  # TRL is untyped
):
    """Configuration of `TRBTrainer`: the fields of TRL's `DistillationConfig`, and those of trbext.

    trbext's fields say who writes the prefixes (`PolicyFields`), how they are decoded (`DecodingFields`,
    `LengthFields`, and `EngineFields` for vLLM), what is minimized there (`LossFields`, `SupervisionFields`), who
    teaches (`TeacherFields`), and below how the KL budget changes and how the student is evaluated.

    The method and its letters are those of Trust-Region Behavior Blending (arXiv 2605.31159). TRL's `beta` keeps its
    meaning, the divergence of the loss (1.0 = reverse KL). The paper's coefficient beta is solved for, never set.

    Raises:
        ValueError: A field is out of range, or generation options contradict the KL budget.
    """

    _VALID_DICT_FIELDS: ClassVar = [
        *DistillationConfig._VALID_DICT_FIELDS,
        "trb_schedule_points",
        "rollout_policy_kwargs",
        "rollout_length_points",
        "vllm_engine_args",
        "teachers",
        "teacher_weights",
    ]

    # Defaults that differ from TRL's: a warmup of 50 steps is worth seeing step by step.
    logging_steps: float = field(
        default=1,
        metadata={
            "help": "Optimizer steps between two logs; below 1, a share of the total steps. A checkpoint logs too."
        },
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036  (HfArgumentParser takes the second type)
        default="none",
        metadata={"help": "Where to report: none, all, wandb, tensorboard, trackio, ... or a list of them."},
    )

    bf16: bool | None = field(
        default=None,
        metadata={"help": "bfloat16 mixed precision. Unset = if the GPU has it; the CPU trains in float32."},
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
    rollouts_per_prompt: int = field(
        default=1,
        metadata={
            "help": "Rollouts of each prompt in an optimizer step; with n, a step takes n times fewer prompts. The "
            "paper: 4."
        },
    )
    eval_samples: int = field(
        default=1,
        metadata={"help": "Completions sampled per prompt for eval_pass@1, from only the student, at temperature 1."},
    )
    eval_verifier: str | None = field(
        default=None,
        metadata={
            "help": "Judge of the completions for eval_pass@1: 'numeric' (last number equals the column 'answer'), "
            "'math' (math-verify), 'demo' (the built-in task) or 'module:function', called as "
            "function(prompt, completion, row) -> bool. "
            "Unset = no pass@1."
        },
    )

    def __post_init__(self) -> None:
        # Without this, several processes on a machine without an accelerator would form no group, and each would train
        # by itself.
        if not torch.accelerator.is_available():
            self.use_cpu = True
        check_ranges(self)
        self.report_to = self.report_to or "none"
        check_reporters(self.report_to)
        if self.bf16 is None:
            self.bf16 = not self.fp16 and device_has_bf16(use_cpu=self.use_cpu)
        check_mappings(self)
        super().__post_init__()
        check_template_options(self.chat_template_kwargs)
        check_optimization(self)
        for name, reason in _REFUSED.items():
            if getattr(self, name):
                raise ValueError(f"{name} must be false, got {getattr(self, name)}: {reason}")
        self.check_policy()
        self.choose_loss_of_server()
        self.check_loss(self.beta)
        self.check_supervision()
        if not is_epsilon(self.trb_epsilon):
            raise ValueError(not_an_epsilon(self.trb_epsilon, "trb_epsilon"))
        if self.trb_schedule not in KINDS:
            raise ValueError(f"trb_schedule must be one of {', '.join(KINDS)}, got {self.trb_schedule!r}")
        check_duration("trb_warmup_steps", self.trb_warmup_steps)
        if self.trb_schedule_points is not None:
            self.trb_schedule_points = _points_by_step(self.trb_schedule_points)
        self.schedule(total_steps=0)  # the schedule's own checks, now rather than at the first step
        self.check_decoding()
        for name, value in (self.generation_kwargs if isinstance(self.generation_kwargs, dict) else {}).items():
            needed, reason = _OF_A_ROLLOUT.get(name, (value, ""))
            if value not in (needed, None):
                raise ValueError(f"generation_kwargs[{name!r}] must be {needed}, got {value!r}: {reason}")
        if self.max_completion_length is None:
            raise ValueError("max_completion_length must be a whole number of at least 1, got None")
        self.check_length()
        if not self.student_writes:
            self.refuse_altered_sampling(f"rollout_policy={self.rollout_policy!r}")
        elif self.loss_estimator in ("sampled", "routed") and self.loss_weighted:
            for name, value in self.altered_law():
                raise ValueError(
                    f"{name}={value!r} cannot be combined with loss_estimator={self.loss_estimator!r}, which weights "
                    "each token by pi_S / mu and knows no mu of altered sampling: remove it, or set loss_weighted=False"
                )
        check_engine(self)
        self.check_teachers()

    def refuse_altered_sampling(self, chosen: str) -> None:
        """Refuses generation options that change the distribution from which `chosen`, a policy, draws.

        Raises:
            ValueError: One is set; names it.
        """
        for name, value in self.altered_sampling():
            wrong = "the KL budget would be enforced on another one" if self.budget_active else "it is the policy's"
            raise ValueError(
                f"{name}={value!r} cannot be combined with {chosen}: it changes the distribution that is sampled, and "
                f"{wrong}. Remove it, or set rollout_policy='student'."
            )

    @property
    def budget_active(self) -> bool:
        """Whether TRB may blend the teacher into the rollouts of any optimizer step."""
        if self.rollout_policy != "trb":
            return False
        if isinstance(self.trb_schedule_points, dict):
            return any(epsilon > 0 for epsilon in self.trb_schedule_points.values())
        return self.trb_epsilon > 0 and (self.trb_schedule == "constant" or self.trb_warmup_steps > 0)

    def policy(self, total_steps: int) -> Policy:
        """The policy that writes the training prefixes of a run of `total_steps`.

        Raises:
            ValueError: As `make_policy`.
        """
        return self.make_policy(self.schedule(total_steps), total_steps, self.seed)

    def objective(self, step: int, total_steps: int) -> Objective:
        """The objective of a run of `total_steps` at optimizer step `step`, from 0."""
        if self.rollout_policy == "sft" and step < duration(self.sft_steps, total_steps):
            return Objective("cross_entropy", self.loss_top_k)
        assert self.loss_estimator is not None
        veto = decayed(self.veto_start, step, duration(self.veto_steps, total_steps))
        return Objective(
            self.loss_estimator,
            self.loss_top_k,
            self.loss_weight_cap,
            veto,
            self.loss_log_ratio_cap,
            self.proximal_alpha,
            self.position_gamma,
        )

    def schedule(self, total_steps: int) -> Schedule:
        """The KL budget by optimizer step of a run of `total_steps`, of which a warmup may be a share."""
        steps = duration(self.trb_warmup_steps, total_steps)
        points = self.trb_schedule_points
        return Schedule.make(
            self.trb_schedule, self.trb_epsilon, steps, points.items() if isinstance(points, dict) else None
        )

    @property
    def student_writes(self) -> bool:
        """Whether the student writes all rollouts: by its name as the policy, or because TRB never has a budget."""
        return not self.budget_active and self.rollout_policy in ("trb", "student")

    @property
    def first_epsilon(self) -> float:
        """The budget of the first point of a piecewise schedule, else `trb_epsilon`, nats per token."""
        points = self.trb_schedule_points
        return self.schedule(total_steps=0)(0) if isinstance(points, dict) else self.trb_epsilon

    def altered_sampling(self) -> Iterator[tuple[str, Any]]:
        """Generation options, with their values, that make TRL sample another distribution than the softmax."""
        for name in ("top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation"):
            if getattr(self, name) not in _PLAIN_SAMPLING[name]:
                yield name, getattr(self, name)
        if isinstance(self.generation_kwargs, dict):
            for name, value in self.generation_kwargs.items():
                if value not in _PLAIN_SAMPLING.get(name, ()):
                    yield f"generation_kwargs[{name!r}]", value

    def altered_law(self) -> Iterator[tuple[str, Any]]:
        """Those of `altered_sampling` that may change the distribution, and not only how TRL decodes."""
        return ((name, value) for name, value in self.altered_sampling() if name not in _OF_THE_CACHE)


def _points_by_step(points: dict[Any, Any] | str) -> dict[int, float]:
    if not isinstance(points, dict):
        raise ValueError(f'trb_schedule_points must be a mapping such as {{"0": 0.05, "50": 0}}, got {points!r}')
    try:
        found = {int(step): float(points[step]) for step in sorted(points, key=int)}
        whole = all(isinstance(step, str) or int(step) == step for step in points)
    except (TypeError, ValueError, OverflowError):
        found, whole = {}, False
    if not whole or len(found) < len(points):
        raise ValueError(
            f"trb_schedule_points must map optimizer steps to budgets in nats, each whole step once, got {points!r}"
        )
    return found
