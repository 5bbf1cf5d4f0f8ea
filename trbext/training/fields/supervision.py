"""Defines the fields of a run that take their loss from SAKI, TOP-D, IW-OPD or prefix distillation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# Policies whose rollouts hold no token of the teacher at some or all steps, by a rule that is not the coupling's.
WITHOUT_REPLACEMENTS = ("student", "temperature", "sft")


@dataclass
class SupervisionFields:
    """Other targets and weights of the loss; formulas are in `trbext/training/supervision/`."""

    loss_weighted: bool = field(
        default=True,
        metadata={
            "help": "For loss_estimator 'sampled' and 'routed': weight tokens by their probability under the student "
            "over that under the rollout policy. False leaves the weights out, as SAKI and Relay-OPD do; the loss is "
            "then another quantity than the reverse KL."
        },
    )
    loss_log_ratio_cap: float | None = field(
        default=None,
        metadata={
            "help": "For loss_estimator 'sampled' and 'routed': the largest |log pi_S - log pi_T| of a token that its "
            "gradient is weighted with, nats. Unset = no cap; SAKI: 10."
        },
    )
    proximal_alpha: float = field(
        default=1.0,
        metadata={
            "help": "TOP-D: the mixture alpha pi_T + (1 - alpha) pi_S, with the student's part held constant, "
            "replaces the teacher in the loss; above 0 to 1. 1 = off."
        },
    )
    loss_prefix_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Prefix distillation: the loss is over the first so many tokens of each completion, and neither "
            "model is trained or scored on the others. Unset = all."
        },
    )
    position_gamma: float = field(
        default=0.0,
        metadata={
            "help": "IW-OPD: weights of the tokens fall from 1 + gamma to 1 with the accumulated discrepancy of the "
            "two models. 0 = off; the paper: 0.5."
        },
    )

    @property
    def of_whole_teacher(self) -> str | None:
        """The first of these fields that needs the teacher's whole distribution, with its value; None if none does."""
        if self.proximal_alpha != 1:
            return f"proximal_alpha={self.proximal_alpha}"
        return f"position_gamma={self.position_gamma}" if self.position_gamma != 0 else None

    def check_supervision(self) -> None:
        """Checks these fields, and what they are combined with.

        Raises:
            ValueError: A field is out of range, or does not fit another.
        """
        for reason in (*self._out_of_range(), *self._routed_with(), *self._combined()):
            raise ValueError(reason)

    def _out_of_range(self) -> Iterator[str]:
        given: Any = self  # the other fields of a configuration are beside these
        cap = self.loss_log_ratio_cap
        if cap is not None and given.loss_estimator not in ("sampled", "routed"):
            yield (
                "loss_log_ratio_cap belongs to loss_estimator 'sampled' or 'routed', got "
                f"loss_estimator={given.loss_estimator!r}"
            )
        if cap is not None and not 0 < cap < math.inf:
            yield f"loss_log_ratio_cap must be a number of nats above 0, or unset for none, got {cap}"
        if not self.loss_weighted and given.loss_estimator not in ("sampled", "routed"):
            yield (
                "loss_weighted belongs to loss_estimator 'sampled' or 'routed', got "
                f"loss_estimator={given.loss_estimator!r}: leave it out"
            )
        if not self.loss_weighted and given.loss_weight_cap is not None:
            yield f"loss_weight_cap={given.loss_weight_cap} cuts weights, and loss_weighted=False has none"
        if not 0 < self.proximal_alpha <= 1:
            yield f"proximal_alpha must be a share with 0 < proximal_alpha <= 1, got {self.proximal_alpha}"
        if not 0 <= self.position_gamma < math.inf:
            yield f"position_gamma must be a finite number >= 0, got {self.position_gamma}"

    def _routed_with(self) -> Iterator[str]:
        given: Any = self
        if given.loss_estimator != "routed":
            return
        if given.rollout_policy in WITHOUT_REPLACEMENTS:
            yield (
                "loss_estimator 'routed' needs a policy by which the teacher replaces tokens of the student, got "
                f"rollout_policy={given.rollout_policy!r}: use loss_estimator 'sampled'"
            )
        for name, value, off in (
            ("veto_start", given.veto_start, 0),
            ("proximal_alpha", self.proximal_alpha, 1),
            ("position_gamma", self.position_gamma, 0),
        ):
            if value != off:
                yield (
                    f"{name}={value} changes the reverse KL of every token, and loss_estimator 'routed' has another "
                    f"loss where the teacher replaced one: leave {name} out"
                )

    def _combined(self) -> Iterator[str]:
        given: Any = self
        proximal, weighted = self.proximal_alpha != 1, self.position_gamma != 0
        if proximal and given.veto_start != 0:
            yield (
                f"proximal_alpha={self.proximal_alpha} and veto_start={given.veto_start} both replace the teacher in "
                "the loss: leave one of them out"
            )
        for name, chosen in (
            (f"proximal_alpha={self.proximal_alpha}", proximal),
            (f"position_gamma={self.position_gamma}", weighted),
        ):
            if chosen and given.beta != 1.0:
                yield f"{name} is of the reverse KL, which is beta = 1.0, got beta = {given.beta}"
