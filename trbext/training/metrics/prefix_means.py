"""Averages what the loss computes at each prefix, over all prefixes of all processes between two logs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..losses import TeacherTerms


class PrefixMeans:
    """Means over prefixes of the reverse KL, the teacher's entropy and the teacher's log-probability, in nats."""

    def __init__(self) -> None:
        self._totals: Tensor | None = None  # see `sums`, over all processes

    @staticmethod
    def sums(reverse_kl_sum: Tensor, prefixes: Tensor, teacher: TeacherTerms) -> Tensor:
        """Returns the sums that one micro-batch of one process adds.

        Args:
            reverse_kl_sum: [] over the prefixes, nats.
            prefixes: [], their number N.
            teacher: [N] per field, nats.

        Returns:
            [5]: sum of reverse KL, prefixes, sum of teacher entropy, sum of teacher log-probability over the tokens
            that the teacher does not exclude (one excluded token would make the mean -inf), number of these tokens.
        """
        allowed = teacher.log_prob > -torch.inf
        log_prob = torch.where(allowed, teacher.log_prob, 0.0)
        parts = (reverse_kl_sum, prefixes, teacher.entropy.sum(), log_prob.sum(), allowed.sum())
        return torch.stack([part.detach().to(log_prob.dtype) for part in parts])

    def add(self, sums: Tensor, accelerator: Accelerator) -> None:
        """Adds the `sums` [5] of every process. Every process calls it."""
        total = accelerator.reduce(sums, reduction="sum")
        self._totals = total if self._totals is None else self._totals + total

    def pop(self) -> dict[str, float]:
        """Returns the `means`, and forgets what was added."""
        found, self._totals = self.means(), None
        return found

    def means(self) -> dict[str, float]:
        """Returns the means since the last `pop` by metric, without any communication; empty if nothing was added."""
        if self._totals is None:
            return {}
        reverse_kl, prefixes, entropy, log_prob, allowed = self._totals.tolist()
        return {
            "trb/reverse_kl": reverse_kl / prefixes if prefixes else math.nan,
            "trb/teacher_entropy": entropy / prefixes if prefixes else math.nan,
            "trb/teacher_log_prob": log_prob / allowed if allowed else math.nan,
        }
