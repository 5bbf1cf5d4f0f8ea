"""Defines behavior policies that remember what a rollout has been through: two models that take turns in writing it.

    Relay      After Relay-OPD (arXiv 2607.26057). The student writes until a handoff trigger: the teacher's most
               probable token is one of `words`, and no word is among the student's K most probable tokens. From
               this token on the teacher writes a leg, up to the L-th boundary. Then the student continues. With
               the M-th leg the rollout ends.
    Switching  After DASH-OPD (arXiv 2607.29078). A turn is a number of tokens. On a turn of the student, the mean of
               log pi_S - log pi_T over its tokens is a signal of drift; on a turn of the teacher, a small mean of
               log pi_T - log pi_S is a signal of recovery. Signals accumulate over turns, and the other model takes
               over when they exceed a threshold.

At every token mu is pi_S or pi_T (on the student's support), so `log_prob` is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from ..ops import sample
from ..results import Sample
from .policy import Memory, Policy, whole_number


class Relay(Policy):
    """The student, with at most M short legs of the teacher at its handoff triggers.

    Args:
        words: Token ids that redirect a text ("Wait", "But", ..). None triggers on any token: the teacher's most
            probable one is not among the student's K.
        top_k: K, from 1.
        legs: M, from 1.
        leg_length: L, from 0, boundaries that a leg holds after its first token; 0 is that token only.
        boundary: Token ids that end a unit of text, such as a paragraph. None: every token is a unit.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        words: Sequence[int] | None,
        top_k: int = 5,
        legs: int = 2,
        leg_length: int = 3,
        boundary: Sequence[int] | None = None,
    ) -> None:
        for name, value, least in (("top_k", top_k, 1), ("legs", legs, 1), ("leg_length", leg_length, 0)):
            whole_number(name, value, least)
        self.words, self.boundary = words, boundary
        self._words, self._boundary = _TokenSet("words", words), _TokenSet("boundary", boundary)
        self.top_k, self.legs, self.leg_length = top_k, legs, leg_length

    def begin(self, rows: int, device: torch.device) -> Memory:
        zeros = torch.zeros(rows, dtype=torch.int64, device=device)
        # Legs begun, and boundaries until the present leg ends; 0 if the student writes.
        return Memory({"begun": zeros, "left": zeros}, zeros.bool())

    def triggered(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Returns the rows [n] at which the teacher would turn elsewhere, and the student would not."""
        best = teacher_logits.argmax(-1, keepdim=True)
        likely = student_logits.topk(min(self.top_k, student_logits.shape[-1])).indices
        if self.words is None:
            return (likely != best).all(-1)
        return self._words.holds(best)[:, 0] & ~self._words.holds(likely).any(-1)

    def draw_after(
        self,
        memory: Memory,
        step: int,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        uniforms: Tensor,
        temperature: float,
    ) -> tuple[Sample, Memory]:
        assert teacher_logits is not None
        begun, left = memory.of_rows["begun"], memory.of_rows["left"]
        # 1. Decide who writes this token.
        begins = (left == 0) & (begun < self.legs) & self.triggered(student_logits, teacher_logits)
        of_teacher = begins | (left > 0)
        drawn = _drawn_by(of_teacher, student_logits, teacher_logits, uniforms[0], temperature)
        # 2. Where the leg ends, and with the last one the rollout.
        begun = begun + begins
        left = torch.where(begins, self.leg_length, left - (self._boundary.holds(drawn.token) & (left > 0)).long())
        ends = of_teacher & (left == 0)
        return drawn, Memory({"begun": begun, "left": left}, ends & (begun == self.legs))


class Switching(Policy):
    """Two models of which one writes until the evidence against it exceeds a threshold.

    With d the mean log-ratio of a turn, log pi_S - log pi_T on the student's and log pi_T - log pi_S on the teacher's,
    the evidence E, from 0, becomes

        student:  max(0, E + d - drift_allowance),      and the teacher takes over if it exceeds drift_threshold
        teacher:  max(0, E + recovery_allowance - d),   and the student takes over if it exceeds recovery_threshold

    at the end of each turn; it is 0 again after a change. The student begins.

    Args:
        turn: Tokens of a turn, from 1.
        drift_threshold: Nats, at least 0, like the arguments that follow.
        drift_allowance: Mean log-ratio that the student may have without evidence of drift.
        recovery_threshold: Nats.
        recovery_allowance: Mean log-ratio of the teacher below which the student is taken to have recovered.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        turn: int,
        drift_threshold: float,
        drift_allowance: float,
        recovery_threshold: float,
        recovery_allowance: float,
    ) -> None:
        for name, value in (
            ("drift_threshold", drift_threshold),
            ("drift_allowance", drift_allowance),
            ("recovery_threshold", recovery_threshold),
            ("recovery_allowance", recovery_allowance),
        ):
            if not (isinstance(value, Real) and 0 <= value < math.inf):
                raise ValueError(f"{name} must be a finite number of nats >= 0, got {value!r:.80}")
        self.turn = whole_number("turn", turn, 1, " token")
        self.drift_threshold, self.drift_allowance = drift_threshold, drift_allowance
        self.recovery_threshold, self.recovery_allowance = recovery_threshold, recovery_allowance

    def begin(self, rows: int, device: torch.device) -> Memory:
        zeros = torch.zeros(rows, dtype=torch.float64, device=device)
        # Whether the teacher writes, tokens of the present turn, the sum of their log-ratios, and the evidence.
        return Memory({"of_teacher": zeros.bool(), "tokens": zeros.long(), "ratios": zeros, "evidence": zeros})

    def draw_after(
        self,
        memory: Memory,
        step: int,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        uniforms: Tensor,
        temperature: float,
    ) -> tuple[Sample, Memory]:
        assert teacher_logits is not None
        of_teacher, evidence = memory.of_rows["of_teacher"], memory.of_rows["evidence"]
        # 1. The model whose turn it is writes. A token that the teacher excludes has an infinite ratio.
        drawn = _drawn_by(of_teacher, student_logits, teacher_logits, uniforms[0], temperature)
        gap = (drawn.student_log_prob - drawn.teacher_log_prob).double()
        tokens, ratios = memory.of_rows["tokens"] + 1, memory.of_rows["ratios"] + torch.where(of_teacher, -gap, gap)
        # 2. At the end of a turn, weigh the evidence.
        over = tokens == self.turn
        mean = ratios / self.turn
        signal = torch.where(of_teacher, self.recovery_allowance - mean, mean - self.drift_allowance)
        evidence = torch.where(over, (evidence + signal).clamp(min=0.0), evidence)
        threshold = torch.where(of_teacher, self.recovery_threshold, self.drift_threshold)
        changes = over & (evidence > threshold)
        return drawn, Memory(
            {
                "of_teacher": of_teacher ^ changes,
                "tokens": tokens.masked_fill(over, 0),
                "ratios": ratios.masked_fill(over, 0.0),
                "evidence": evidence.masked_fill(changes, 0.0),
            }
        )


def _drawn_by(
    of_teacher: Tensor, student_logits: Tensor, teacher_logits: Tensor, uniform: Tensor, temperature: float
) -> Sample:
    """Draws from the teacher in the rows of `of_teacher` [n], and from the student in the others."""
    budget = torch.where(of_teacher, math.inf, 0.0).float()
    return sample(student_logits, teacher_logits, budget, uniform=uniform, temperature=temperature)


class _TokenSet:
    """A set of token ids that is copied to a device once, because each copy would wait for it.

    Args:
        name: The user's name for the set.
        ids: None holds every token.

    Raises:
        ValueError: An id is no whole number from 0.
    """

    def __init__(self, name: str, ids: Sequence[int] | None) -> None:
        self._ids = None if ids is None else [whole_number(f"each id of {name}", token, 0) for token in ids]
        self._on: dict[torch.device, Tensor] = {}

    def holds(self, token: Tensor) -> Tensor:
        """Returns which of the tokens [...] are in the set."""
        if self._ids is None:
            return torch.ones_like(token, dtype=torch.bool)
        if token.device not in self._on:
            self._on[token.device] = torch.tensor(self._ids, dtype=token.dtype, device=token.device)
        return torch.isin(token, self._on[token.device])
