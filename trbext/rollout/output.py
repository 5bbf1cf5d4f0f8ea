"""Holds what a rollout returns: completions, and their log-probabilities under the behavior policy and both models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..top_k import TopK
    from .hidden_states import HiddenStates


@dataclass(frozen=True)
class Speculation:
    """Counts of a speculative rollout, over the rows that were still being decoded."""

    rounds: int  # passes of the teacher over the batch
    row_passes: int  # the same passes, counted once per row
    drafted: int  # drafts tested: in each round of a row, those up to the first rejected one or the end
    accepted: int  # drafts accepted of these

    @property
    def acceptance(self) -> float:
        """The share of the tested drafts that were accepted; estimates 1 - TV(mu, pi_S)."""
        return self.accepted / self.drafted if self.drafted else float("nan")


@dataclass(frozen=True)
class Rollout:
    """Completions of B prompts, of which the longest has T tokens. All tensors are on one device; none requires grad.

    Log-probabilities are natural logarithms at the sampling temperature, over the aligned vocabulary, in float32, and 0
    if `mask` is False. In rollouts of the student only (epsilon = 0) the teacher was never called: `teacher_log_prob`
    is None, beta and kl are 0, and `log_prob` equals `student_log_prob`. For policies that are no geometric blend
    (`rollout/policies.py`), beta is NaN.
    """

    tokens: Tensor  # [B, T] int64; the pad token after a row's end
    mask: Tensor  # [B, T] bool; True for generated tokens, the EOS included
    log_prob: Tensor  # [B, T] log mu(token), the behavior policy that drew it
    student_log_prob: Tensor  # [B, T] log pi_S(token)
    teacher_log_prob: Tensor | None  # [B, T] log pi_T(token)
    beta: Tensor  # [B, T] the paper's coefficient, in [0, 1]
    kl: Tensor  # [B, T] KL(mu || pi_S) spent at this token, nats
    finished: Tensor  # [B] bool; True if the row drew the stop token, False if the length limit cut it
    teacher_states: Tensor | None = None  # [B, T, H] its last hidden states at the prefix of each token, if kept
    speculation: Speculation | None = None  # None if the rollout was decoded in lockstep
    # [B, T] bool; True for a draft of the student that was accepted, False for the token that replaced one (events.py).
    accepted: Tensor | None = None
    # Of a `TopKTeacher`: its most probable tokens at the prefix of each token, -1 for none, and their log-probs.
    teacher_top_ids: Tensor | None = None  # [B, T, k] int64
    teacher_top_log_prob: Tensor | None = None  # [B, T, k] float32, nats

    @property
    def replaced(self) -> Tensor:
        """[B, T] bool: True for tokens that replaced a draft of the student.

        Raises:
            ValueError: The rollout has no labels.
        """
        if self.accepted is None:
            raise ValueError("this rollout does not say which of its tokens are accepted drafts: accepted is None")
        return self.mask & ~self.accepted

    @property
    def lengths(self) -> Tensor:
        """[B] int64: the number of generated tokens of each row, the EOS included."""
        return self.mask.sum(1)

    def with_each_tensor(self, change: Callable[[Tensor], Tensor]) -> Rollout:
        """Returns the same rollout with `change(tensor)` for each of its tensors."""
        changed: dict[str, Any] = {n: change(value) for n, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **changed)

    def to(self, device: torch.device | str) -> Rollout:
        """Returns the same rollout with all tensors on `device`."""
        return self.with_each_tensor(lambda tensor: tensor.to(device))

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
        teacher_top: TopK | None = None,
        speculation: Speculation | None = None,
        accepted: Tensor | None = None,
    ) -> Rollout:
        """Returns a rollout from buffers of any width N, whose content past the end of each row is dropped.

        Waits once for the device, to learn the longest row.

        Args:
            tokens: [B, N] int64.
            values: [5, B, N] float32: log_prob, student_log_prob, teacher_log_prob, beta, kl.
            lengths: [B] int64, generated tokens of each row.
            finished: [B] bool, whether the row drew the stop token.
            pad_token_id: The id that follows the end of a row.
            teacher: Whether the teacher took part, without which its log-probabilities mean nothing.
            teacher_states: What was kept of the teacher's hidden states, if anything.
            teacher_top: [B, N, k], what a top-k teacher has said.
            speculation: The counts of a speculative rollout.
            accepted: [B, N] bool, the labels of the tokens, if there are any.
        """
        longest = int(lengths.max())
        mask = torch.arange(longest, device=tokens.device) < lengths[:, None]
        empty = ~mask[..., None]
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
            accepted=None if accepted is None else accepted[:, :longest] & mask,
            teacher_top_ids=None if teacher_top is None else teacher_top.ids[:, :longest].masked_fill(empty, -1),
            teacher_top_log_prob=(
                None if teacher_top is None else teacher_top.log_probs[:, :longest].masked_fill(empty, -torch.inf)
            ),
        )
