"""Defines the fields of a run that say who writes its prefixes; those of TRB's own budget are in `config.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...rollout.policies import (
    ArithmeticMixture,
    FixedBeta,
    InterleavedTeacher,
    LambdaCoin,
    StudentTemperature,
    Teacher,
    TrustRegion,
)
from ...rollout.policy import Policy
from ...rollout.policy_methods import check_policy_methods
from ...user_objects import load_object, made_with
from ..schedule import Schedule, check_duration, duration
from .turns import TurnFields

ROLLOUT_POLICIES = (
    "trb",
    "student",
    "fixed",
    "fixed_beta",
    "skd",
    "arithmetic",
    "temperature",
    "sft",
    "teacher",
    "gkd",
    "relay",
    "switching",
)


@dataclass
class PolicyFields(TurnFields):
    """The rollout policy and the parameters of each.

    Formulas and sources are in `trbext/rollout/policies.py` and `policies_with_memory.py` beside it.
    """

    rollout_policy: str = field(
        default="trb",
        metadata={
            "help": "Who writes the training prefixes: 'trb' = student and teacher blended within the KL budget; "
            "'student' = only the student (vanilla on-policy distillation); 'fixed' = blended within trb_epsilon for "
            "the whole run; 'fixed_beta' = blended with the coefficient fixed_beta; 'skd' = the student, a token "
            "outside the teacher's top skd_top_k replaced by the teacher's; 'arithmetic' = a mixture with teacher's "
            "share arithmetic_alpha; 'temperature' = the student, at first at temperature_start; 'sft' = the teacher "
            "for sft_steps with cross-entropy as the loss, then the student; 'teacher' = the teacher (offline "
            "distillation); 'gkd' = the student with probability gkd_lambda, else the teacher; 'relay' = the student, "
            "and for a few paragraphs the teacher where its most probable token is not among the student's; "
            "'switching' = the student until it has drifted from the teacher, then the teacher until the student has "
            "recovered, and so on; or 'module:Class', a trbext.rollout.Policy of your own."
        },
    )
    rollout_policy_kwargs: dict[Any, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of a rollout_policy 'module:Class', as a mapping: it is made as Class(**mapping)."
        },
    )
    fixed_beta: float = field(
        default=0.5, metadata={"help": "For 'fixed_beta': the coefficient of the blend, 0 (student) to 1 (teacher)."}
    )
    skd_top_k: int = field(
        default=25,
        metadata={"help": "For 'skd': how many of the teacher's most probable tokens are accepted. The paper: 25."},
    )
    skd_teacher_temperature: float = field(
        default=1.0, metadata={"help": "For 'skd': temperature of the teacher's replacements, from 1e-6 to 1e6."}
    )
    arithmetic_alpha: float = field(
        default=0.2, metadata={"help": "For 'arithmetic': the teacher's share of the mixture, 0 to 1. MiniLLM: 0.2."}
    )
    temperature_start: float = field(
        default=0.9,
        metadata={
            "help": "For 'temperature': factor on temperature at the first step, from 1e-6 to 1e6; it goes to 1."
        },
    )
    temperature_warmup_steps: float = field(
        default=25,
        metadata={
            "help": "For 'temperature': optimizer steps until the factor is 1. An integer, or a share of all steps "
            "below 1."
        },
    )
    sft_steps: float = field(
        default=25,
        metadata={
            "help": "For 'sft': supervised optimizer steps, on the teacher's responses to the first prompts. An "
            "integer, or a share of all steps below 1."
        },
    )
    gkd_lambda: float = field(
        default=0.5, metadata={"help": "For 'gkd': probability of the student's own rollouts, 0 to 1."}
    )
    gkd_coin: str = field(
        default="batch",
        metadata={
            "help": "For 'gkd': 'batch' = one decision an optimizer step (the paper's algorithm), 'sequence' = one for "
            "each rollout."
        },
    )

    def check_policy(self) -> None:
        """Checks these fields, also those of policies that are not chosen.

        Raises:
            ValueError: A field is out of range.
        """
        if self.rollout_policy not in ROLLOUT_POLICIES and ":" not in self.rollout_policy:
            raise ValueError(
                f"rollout_policy must be one of {', '.join(ROLLOUT_POLICIES)} or 'module:Class', got "
                f"{self.rollout_policy!r}"
            )
        if isinstance(self.rollout_policy_kwargs, str):
            raise ValueError(f"rollout_policy_kwargs must be a mapping, got {self.rollout_policy_kwargs!r}")
        if self.rollout_policy_kwargs is not None and self.rollout_policy in ROLLOUT_POLICIES:
            raise ValueError(
                f"rollout_policy_kwargs belong to a 'module:Class', got rollout_policy {self.rollout_policy!r}"
            )
        check_duration("temperature_warmup_steps", self.temperature_warmup_steps)
        check_duration("sft_steps", self.sft_steps)
        checks: dict[str, Callable[[], Policy]] = {
            "fixed_beta": lambda: FixedBeta(self.fixed_beta),
            "skd_top_k, skd_teacher_temperature": self._skd,
            "arithmetic_alpha": lambda: ArithmeticMixture(self.arithmetic_alpha),
            "temperature_start": lambda: StudentTemperature(self.temperature_start, 0),
            "gkd_lambda, gkd_coin": lambda: LambdaCoin(self.gkd_lambda, self.gkd_coin),
            "relay": self.relay,
            "switching": self.switching,
        }
        for names, make in checks.items():
            try:
                make()
            except ValueError as error:
                raise ValueError(f"{names}: {error}") from None

    def make_policy(self, schedule: Schedule, total_steps: int, seed: int) -> Policy:
        """Makes the policy that `rollout_policy` names.

        Args:
            schedule: TRB's KL budget by optimizer step.
            total_steps: Optimizer steps of the run, of which durations may be shares.
            seed: Of the run.

        Raises:
            ValueError: There is no such 'module:Class', or it cannot be made or called as a policy.
        """
        makers: dict[str, Callable[[], Policy]] = {
            "trb": lambda: TrustRegion(schedule),
            "student": lambda: TrustRegion(0.0),
            "fixed": lambda: TrustRegion(schedule.epsilon),
            "fixed_beta": lambda: FixedBeta(self.fixed_beta),
            "skd": self._skd,
            "arithmetic": lambda: ArithmeticMixture(self.arithmetic_alpha),
            "temperature": lambda: StudentTemperature(
                self.temperature_start, duration(self.temperature_warmup_steps, total_steps)
            ),
            "sft": lambda: Teacher(duration(self.sft_steps, total_steps)),
            "teacher": Teacher,
            "gkd": lambda: LambdaCoin(self.gkd_lambda, self.gkd_coin, seed),
            "relay": self.relay,
            "switching": self.switching,
        }
        if self.rollout_policy in makers:
            return makers[self.rollout_policy]()
        kwargs = self.rollout_policy_kwargs if isinstance(self.rollout_policy_kwargs, dict) else {}
        name = f"the rollout policy {self.rollout_policy!r}"
        policy = made_with(name, load_object("rollout policy", self.rollout_policy), kwargs)
        if not isinstance(policy, Policy):
            raise ValueError(f"{name} must make a trbext.rollout.Policy, got {type(policy).__name__}")
        check_policy_methods(repr(self.rollout_policy), policy)
        return policy

    def _skd(self) -> Policy:
        return InterleavedTeacher(self.skd_top_k, self.skd_teacher_temperature)
