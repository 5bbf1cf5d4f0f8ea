"""Gives the logits of both models one vocabulary, in place, with a temperature for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """The first `width` logits of both models, with every EOS id merged into `stop` (`trbext.vocab.Alignment`)."""

    width: int  # tokens that both models have; 0 if their logits have the same width
    stop: int = 0  # the id that ends a rollout
    merged: tuple[int, ...] = ()  # the other EOS ids of either model

    def check(self, sizes: Sequence[int], top_k: int) -> None:
        """Checks that both models have every id that is named, which would otherwise fail at the first draft.

        Args:
            sizes: The vocabularies of both models.
            top_k: Tokens of the teacher's distribution that shall be recorded.

        Raises:
            ValueError: They have not, or fewer tokens than `top_k`.
        """
        common = self.width or min(sizes)
        if common > min(sizes):
            raise ValueError(f"width must be at most {min(sizes)}, which both models have, got {common}")
        for name, ids in (("stop", (self.stop,)), ("merged", self.merged)):
            wrong = [token for token in ids if not 0 <= token < common]
            if wrong:
                raise ValueError(f"{name} must be of the {common} ids that both models have, got {wrong[0]}")
        if not 0 <= top_k <= common:
            raise ValueError(f"top_k must be at most the {common} tokens that both models have, got {top_k}")

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
