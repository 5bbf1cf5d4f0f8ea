"""Keeps the teacher's last hidden states at the prefixes of a rollout, so that the loss needs no teacher forward.

The backbone hands these states to the lm_head. TRL's loss computes the same states by a forward of its own. They are H
numbers of the model's dtype per generated token, about a hundredth of the size of its logits.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.cached_model import backbone, unwrap

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HiddenStates:
    """Collects the states of a batch while `model` decodes, in a `with` block.

    Args:
        model: The teacher, whose forwards are observed.
        batch: Rows B of the rollout.
        limit_bytes: The most memory that the states may take. If they need more, all of them are dropped and
            `of_lengths` returns None: some of the states would save no forward, and a rollout must not run out of
            memory for the sake of speed.
    """

    def __init__(self, model: PreTrainedModel, batch: int, *, limit_bytes: float) -> None:
        self._backbone = backbone(unwrap(model))
        self._batch = batch
        self._limit = limit_bytes
        self._last: Tensor | None = None  # [n, q, H] of the last forward
        self._kept: Tensor | None = None  # [B, tokens, H]
        self.dropped = False

    def __enter__(self) -> HiddenStates:
        self._handle = self._backbone.register_forward_hook(self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _remember(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._last = None if self.dropped else output.last_hidden_state

    def keep(self, rows: Tensor, token: Tensor, end: int) -> None:
        """Keeps the states of the last forward, at its last q positions.

        Args:
            rows: [n] int64, the rows of the forward, as indices in the original batch.
            token: [n, q] int64, the index in the completion of the token that each state predicts. The state of an
                index that was kept before is written over.
            end: An upper bound of `token`, exclusive, that the host knows.
        """
        if self._last is None:
            return
        states = self._last[:, -token.shape[1] :]
        self._last = None
        if self._kept is None or self._kept.shape[1] < end:
            have = 0 if self._kept is None else self._kept.shape[1]
            most = int(min(self._limit, 2**62)) // (self._batch * states.shape[2] * states.element_size())
            room = min(max(end, 2 * have, 16), most)
            if room < end:
                self._kept, self.dropped = None, True
                return
            grown = states.new_zeros((self._batch, room, states.shape[2]))
            if self._kept is not None:
                grown[:, :have] = self._kept
            self._kept = grown
        # Under a device map the backbone may end on another device than the prompts'.
        self._kept[rows[:, None].to(states.device), token.to(states.device)] = states

    def of_lengths(self, longest: int) -> Tensor | None:
        """Returns the states [B, longest, H] at the prefixes of the first `longest` tokens; None if the limit was
        exceeded."""
        return None if self._kept is None else self._kept[:, :longest]
