"""Keeps what each request asks for at its slot in Model Runner V2, on the host and on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..requests import NO_KEY, check_request
from .row_layout import on_device


class RequestSlots:
    """What each request asks for, at its slot in the runner.

    Args:
        slots: Of the runner.
        epsilon: KL budget of requests that name none of their own, nats per token.
        device: Of the engine.
    """

    def __init__(self, slots: int, epsilon: float, device: torch.device) -> None:
        self.keys = np.full(slots, NO_KEY, np.int64)
        self._held_out = np.zeros(slots, np.int64)
        self._epsilons = np.full(slots, epsilon, np.float32)
        self._names_none = np.ones(slots, bool)
        self._epsilon, self._device = epsilon, device
        self._seeds = np.random.default_rng(0)
        self._changed = True
        self.apply()

    def reseed(self, seed: int) -> None:
        """Sets the seed from which the seeds of requests to come are drawn."""
        self._seeds = np.random.default_rng(seed)

    def add(self, slot: int, parameters: Any) -> int:
        """Puts a request at a slot.

        Args:
            slot: Of the runner.
            parameters: vLLM's SamplingParams.

        Returns:
            The seed of the request's drafts, an int64. vLLM would draw it from numpy's global generator.

        Raises:
            ValueError: The tokens of the request could not follow mu.
        """
        asked = check_request(parameters)
        self.keys[slot], self._held_out[slot] = asked.key, asked.held_out
        self._names_none[slot] = asked.epsilon is None
        self._epsilons[slot] = self._epsilon if asked.epsilon is None else asked.epsilon
        self._changed = True
        return int(self._seeds.integers(-(2**63), 2**63, dtype=np.int64))

    def set_epsilon(self, epsilon: float) -> None:
        """Sets the budget of requests that name none of their own."""
        self._epsilon = epsilon
        self._epsilons[self._names_none] = epsilon
        self._changed = True
        self.apply()

    def apply(self) -> None:
        """Makes changes visible on the device. The copies there are new ones: a step may still read the old."""
        if self._changed:
            self.epsilon = on_device(self._epsilons.copy(), self._device)
            self.held_out = on_device(self._held_out.copy(), self._device)
            self._changed = False
