"""Defines how a client reaches a TRB engine, in its own process or over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from .requests import EPSILON, HELD_OUT, KEY

Records = dict[str, NDArray[Any]]  # see `StepRecords.take`


@dataclass(frozen=True)
class RolloutRequest:
    """One completion that an engine is asked for."""

    prompt: list[int]  # token ids, at least two; the engine reads all but the last
    key: int  # its name in the engine's records
    max_new_tokens: int
    temperature: float
    stop: int  # the id that ends it
    epsilon: float | None = None  # KL budget, nats per token; None is the engine's

    @property
    def stop_token_ids(self) -> list[int]:
        """The ids at which the engine is to stop.

        vLLM takes the held-out token for one that it drew. It would end the rollout of a prompt that ends with `stop`
        at once, and min_tokens, which masks ids, would not help. Such a rollout continues to its length, and
        `EngineCompletion.of` cuts it.
        """
        return [] if self.prompt[-1] == self.stop else [self.stop]

    def extra_args(self, first_key: int = 0) -> dict[str, Any]:
        """Returns what the engine's hook reads of the request. Its key counts from `first_key`."""
        extra: dict[str, Any] = {HELD_OUT: self.prompt[-1], KEY: first_key + self.key}
        return extra if self.epsilon is None else {**extra, EPSILON: self.epsilon}


@dataclass(frozen=True)
class EngineCompletion:
    """What an engine answers to a `RolloutRequest`."""

    tokens: list[int]  # the held-out token is the first
    finished: bool  # by the stop token, not by the length

    @classmethod
    def of(cls, request: RolloutRequest, tokens: list[int]) -> EngineCompletion:
        """Returns the completion that ends with the first stop token which the engine drew, or with all `tokens`."""
        finished = request.stop in tokens[1:]
        return cls(tokens[: tokens.index(request.stop, 1) + 1] if finished else tokens, finished)


class Engine(Protocol):
    """An engine whose tokens follow mu, after `enable`."""

    def enable(self, **settings: Any) -> dict[str, Any]:
        """Calls `WorkerExtension.trb_enable` on every worker; returns its answer, which must be the same from all."""

    def generate(self, requests: Sequence[RolloutRequest]) -> list[EngineCompletion]:
        """Decodes all requests, in any order, and returns their completions in the order given."""

    def set_epsilon(self, epsilon: float) -> None:
        """Sets the budget of requests that name none."""

    def seed(self, seed: int) -> None:
        """Sets the seed of all random numbers of the engine."""

    def counters(self, *, clear: bool = False) -> list[dict[str, Any]]:
        """The counters (`Counters.read`) of each replica."""

    def take_records(self) -> list[Records]:
        """The records (`StepRecords.take`) of each replica."""

    def preemptions(self) -> int | None:
        """Preemptions of requests since the engine started; None if it does not count them."""

    def load_student(self, folder: str) -> None:
        """Loads the student's weights from a folder of safetensors, and drops what was cached of the old ones."""

    def digest(self) -> list[dict[str, str]]:
        """`WorkerExtension.trb_digest` of each worker."""

    def random_state(self) -> AbstractContextManager[None]:
        """Keeps the caller's own random numbers as they were, where the engine shares them."""
