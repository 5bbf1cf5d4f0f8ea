"""What a rollout returns: the completions and what the behavior policy, the student and the teacher thought of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .hidden_states import HiddenStates


@dataclass(frozen=True)
class Speculation:
    """How a speculative rollout went, over the rows that were still decoding."""

    rounds: int  # passes of the teacher over the batch
    row_passes: int  # the same, each counted for every row in it
    drafted: int  # drafts tested, up to the one that fell in each round
    accepted: int  # of these

    @property
    def acceptance(self) -> float:
        """Share of the tested drafts that stood; estimates 1 - TV(mu, pi_S)."""
        return self.accepted / self.drafted if self.drafted else float("nan")


@dataclass(frozen=True)
class Rollout:
    """Completions of B prompts, T tokens in the longest. All on one device, none requires grad.

    Log-probabilities are natural logs at the sampling temperature, over the aligned vocabulary; float32, and 0 where
    `mask` is False. On pure-student rollouts (epsilon = 0) the teacher was never asked: `teacher_log_prob` is None,
    beta and kl are 0, and `log_prob` equals `student_log_prob`. Of other policies (`rollout/policies.py`), beta is NaN
    where they are no geometric blend.
    """

    tokens: Tensor  # [B, T] int64; the pad token after a row's end
    mask: Tensor  # [B, T] bool; True on generated tokens, the EOS included
    log_prob: Tensor  # [B, T] log mu(token), the behavior policy that drew it
    student_log_prob: Tensor  # [B, T] log pi_S(token)
    teacher_log_prob: Tensor | None  # [B, T] log pi_T(token)
    beta: Tensor  # [B, T] the paper's coefficient, in [0, 1]
    kl: Tensor  # [B, T] KL(mu || pi_S) spent at this token, nats
    finished: Tensor  # [B] bool; True where the row ended by itself, False where the length limit cut it
    teacher_states: Tensor | None = None  # [B, T, H] its last hidden states at the prefix of each token, if asked for
    speculation: Speculation | None = None  # None where the rollout was decoded in lockstep

    @property
    def lengths(self) -> Tensor:
        """[B] int64: generated tokens of each row, the EOS included."""
        return self.mask.sum(1)

    @classmethod
    def trim(
        cls,
        tokens: Tensor,
        values: Tensor,
        lengths: Tensor,
        finished: Tensor,
        *,
        pad_token_id: int,
        teacher: bool,
        teacher_states: HiddenStates | None = None,
        speculation: Speculation | None = None,
    ) -> Rollout:
        """A rollout from buffers of any width, whose content past each row's `lengths` [B] is dropped.

        tokens [B, N] int64; values [5, B, N] float32: log_prob, student_log_prob, teacher_log_prob, beta, kl, where
        `teacher` says whether the third means anything. Waits once for the device, to learn the longest row.
        """
        longest = int(lengths.max())
        mask = torch.arange(longest, device=tokens.device) < lengths[:, None]
        log_prob, student_log_prob, teacher_log_prob, beta, kl = values[:, :, :longest].masked_fill(~mask, 0.0).unbind()
        return cls(
            tokens=tokens[:, :longest].masked_fill(~mask, pad_token_id),
            mask=mask,
            log_prob=log_prob,
            student_log_prob=student_log_prob,
            teacher_log_prob=teacher_log_prob if teacher else None,
            beta=beta,
            kl=kl,
            finished=finished,
            teacher_states=None if teacher_states is None else teacher_states.of_lengths(longest),
            speculation=speculation,
        )
