"""Counts what an engine's steps did, on the device, so that no step waits for the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SUMS = ("tokens", "accepted", "beta", "kl", "faults")


class Counters:
    """Sums over the tokens that verify wrote, since the last clear.

    Args:
        device: Of the engine.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.clear()

    def clear(self) -> None:
        """Starts again from zero."""
        self._sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=self._device)
        self._kl_max = torch.zeros((), device=self._device)
        self.steps = 0  # passes of the teacher over a batch
        self.row_passes = 0  # the same, counted once for each request with drafts
        self.held_out = 0  # requests begun with the token that they held out
        self.teacher_tokens = 0  # drawn from the teacher for want of drafts; no such token follows mu

    def add(self, emitted: Tensor, accepted: Tensor, beta: Tensor, kl: Tensor, usable: Tensor | None = None) -> None:
        """Adds the results of one call of verify.

        Args:
            emitted: [B] int32.
            accepted: [B] int32.
            beta: [N] NaN for rows that were not reached.
            kl: [N] nats, likewise.
            usable: [B] bool, the requests that count; None is all.
        """
        if usable is not None:
            emitted, accepted = emitted * usable, accepted * usable
        parts = (emitted.clamp(min=0).sum(), accepted.sum(), beta.nansum(), kl.nansum(), (emitted < 0).sum())
        self._sums += torch.stack([part.double() for part in parts])
        self._kl_max = torch.maximum(self._kl_max, kl.nan_to_num(0.0).max())

    def read(self) -> dict[str, Any]:
        """The counts and means so far, by name. Waits for the device."""
        sums = dict(zip(_SUMS, self._sums.tolist(), strict=True))
        tokens = sums["tokens"]
        return {
            "steps": self.steps,
            "row_passes": self.row_passes,
            "held_out": self.held_out,
            "teacher_tokens": self.teacher_tokens,
            "tokens": int(tokens),
            "accepted": int(sums["accepted"]),
            "faults": int(sums["faults"]),
            "beta_mean": sums["beta"] / tokens if tokens else 0.0,
            "kl_mean": sums["kl"] / tokens if tokens else 0.0,
            "kl_max": float(self._kl_max),
        }
