"""Gives the logits of both models one vocabulary, in place, with a temperature for each row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """The first `width` logits of both models, with every EOS id merged into `stop` (`trbext.vocab.Alignment`)."""

    width: int  # tokens that both models have; 0 if their logits have the same width
    stop: int = 0  # the id that ends a rollout
    merged: tuple[int, ...] = ()  # the other EOS ids of either model

    def cuts(self, logits: Tensor) -> bool:
        """Whether `logits` [n, V] have tokens that the other model lacks."""
        return 0 < self.width < logits.shape[-1]

    def canonical_(self, logits: Tensor, temperature: Tensor) -> Tensor:
        """Masks the tokens of only one model, and moves the mass of every EOS id to `stop`. In place.

        Args:
            logits: [n, V], any float dtype.
            temperature: [n] float32, at which the softmax will be taken.

        Returns:
            `logits`.
        """
        if self.cuts(logits):
            logits[:, self.width :] = -torch.inf
        if self.merged:
            scale = temperature[:, None]
            columns = torch.stack([logits[:, token] for token in (self.stop, *self.merged)], -1).float()
            logits[:, self.stop] = ((columns / scale).logsumexp(-1) * temperature).to(logits.dtype)
            for token in self.merged:
                logits[:, token] = -torch.inf
        return logits
