"""Defines what a behavior policy is: what draws the tokens of a rollout, with or without a memory of each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from ..results import Sample


@dataclass(frozen=True)
class Memory:
    """What a policy remembers of n rows from one token to the next."""

    of_rows: Mapping[str, Tensor]  # [n] or [n, ...] each, by names of the policy
    ended: Tensor | None = None  # [n] bool, the rows that end with the token just drawn; None if the policy ends none

    def keep_rows(self, rows: Tensor) -> Memory:
        """Returns the memory of only the rows [m]."""
        ended = None if self.ended is None else self.ended[rows]
        return Memory({name: value[rows] for name, value in self.of_rows.items()}, ended)


class Policy:
    """A behavior policy. Subclasses define `draw`, and those of the other members that differ for them.

    Examples:
        >>> class Coin(Policy):  # one token in two is the teacher's
        ...     def draw(self, step, student_logits, teacher_logits, uniforms, temperature):
        ...         halves = [(logits / temperature).softmax(-1) for logits in (student_logits, teacher_logits)]
        ...         return draw_from((sum(halves) / 2).log(), student_logits, teacher_logits, uniforms[0], temperature)
    """

    uniforms_per_token: int = 1
    uniforms_per_row: int = 0  # the same at every token of a rollout, for decisions about whole sequences

    def draw(
        self, step: int, student_logits: Tensor, teacher_logits: Tensor | None, uniforms: Tensor, temperature: float
    ) -> Sample:
        """Draws one token after each of n prefixes, as a pure function of the arguments.

        Args:
            step: Optimizer step, 0-based. It may differ from call to call, so nothing may be kept between calls.
            student_logits: [n, V], float32, float16 or bfloat16, -inf for tokens that do not exist.
            teacher_logits: [n, V], likewise; None if `needs_teacher(step)` is False.
            uniforms: [uniforms_per_token + uniforms_per_row, n] float64 in [0, 1), those of the token first.
            temperature: Of the run, above 0, at which the log-probabilities of both models are reported.

        Returns:
            Each [n]: token (int64; -1 if none can be drawn, which ends the rollout with an error), log_prob (under mu),
            student_log_prob, teacher_log_prob (anything without a teacher), beta (NaN if mu is not a geometric blend)
            and kl = KL(mu || pi_S), in nats.
        """
        raise NotImplementedError

    def needs_teacher(self, step: int) -> bool:
        """Returns whether `draw` reads the teacher's logits at this optimizer step; if not, the teacher is not
        called."""
        return True

    def is_student(self, step: int) -> bool:
        """Returns whether mu is pi_S itself at this optimizer step, so that any engine may sample the student
        instead."""
        return False

    def keep_rows(self, rows: Tensor) -> Policy:
        """Returns the policy of only the rows [m] of the batch, for a policy that treats rows differently."""
        return self

    def begin(self, rows: int, device: torch.device) -> Memory | None:
        """Returns what a policy remembers of each of so many rows before their first token.

        Returns None, as here, if the policy has no memory; `draw` then draws its tokens.
        """
        return None

    def draw_after(
        self,
        memory: Memory,
        step: int,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        uniforms: Tensor,
        temperature: float,
    ) -> tuple[Sample, Memory]:
        """Draws as `draw`, by what the policy remembers of each row, for a policy whose `begin` returns a memory.

        Args:
            memory: Of the n rows.
            step: As in `draw`, like all arguments that follow.
            student_logits: [n, V].
            teacher_logits: [n, V] or None.
            uniforms: [uniforms_per_token + uniforms_per_row, n].
            temperature: Of the run.

        Returns:
            As `draw`, and the memory of the same rows at their next token. What is drawn after the end of a row is
            dropped, so nothing may be read from it.
        """
        raise NotImplementedError


def whole_number(name: str, value: int, least: int, unit: str = "") -> int:
    """Returns `value` if it is a whole number of at least `least`, and raises ValueError if not."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}{unit}, got {value}")
    return value
