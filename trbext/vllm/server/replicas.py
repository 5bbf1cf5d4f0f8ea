"""Calls every replica of a vLLM server, and brings back the answers of all their workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import numpy as np

# A step that is under way holds blocks of the cache for a moment after its last request was answered.
RESET_ATTEMPTS = 50
RESET_PAUSE = 0.1  # seconds between them
DEATH_WATCH = 1.0  # seconds between two looks at whether an engine has died


class ReplicaBusy(RuntimeError):
    """A replica has requests that run."""


class Replicas:
    """The core engines of a vLLM server, one for each data-parallel replica.

    vLLM's own `collective_rpc` asks all of them but returns the answers of the first only; its `reset_prefix_cache` did
    so too until 0.31. This class addresses each engine by itself.

    Args:
        engine_client: vLLM's AsyncLLM.

    Raises:
        RuntimeError: This vLLM has no way to address an engine, or some replicas are behind another API server.
    """

    def __init__(self, engine_client: Any) -> None:
        self._core: Any = getattr(engine_client, "engine_core", None)
        engines = getattr(self._core, "core_engines", None)
        if not engines or not hasattr(self._core, "_call_utility_async"):
            raise RuntimeError(
                "a TRB server must reach each of its core engines, and this vLLM's client has no core_engines"
            )
        expected = engine_client.vllm_config.parallel_config.data_parallel_size
        if len(engines) != expected:
            raise RuntimeError(
                f"a TRB server must reach all {expected} data-parallel replicas, and this API server has {len(engines)}"
            )

    def __len__(self) -> int:
        return len(self._core.core_engines)

    async def call(
        self,
        method: str,
        arguments: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
        *,
        timeout: float | None = None,
    ) -> list[list[Any]]:
        """Calls a method of all workers of all replicas, at the same time.

        Args:
            method: Of the worker.
            arguments: By name; a sequence has those of each replica.
            timeout: Seconds; None waits for ever.

        Returns:
            The answer of each worker, by replica.

        Raises:
            RuntimeError: A replica failed. Says which ones, and their errors. The others have done what was asked.
        """
        shared = isinstance(arguments, Mapping) or not arguments
        each = [dict(arguments)] * len(self) if shared else [dict(own) for own in arguments]  # type: ignore[arg-type]
        return await self._all(
            method,
            [
                self._core._call_utility_async("collective_rpc", method, timeout, (), own, engine=engine)
                for engine, own in zip(self._core.core_engines, each, strict=True)
            ],
        )

    async def reset_prefix_cache(self) -> None:
        """Empties the prefix cache of every replica, which holds keys and values of the student's weights.

        Raises:
            ReplicaBusy: Requests keep a cache in use. Names the replicas.
        """
        for attempt in range(RESET_ATTEMPTS):
            if attempt:
                await asyncio.sleep(RESET_PAUSE)
            done = await self._all(
                "reset_prefix_cache",
                [
                    self._core._call_utility_async("reset_prefix_cache", False, False, engine=engine)
                    for engine in self._core.core_engines
                ],
            )
            if all(done):
                return
        busy = ", ".join(str(rank) for rank, reset in enumerate(done) if not reset)
        raise ReplicaBusy(f"the prefix cache could not be reset, because requests are running in replica {busy}")

    async def _all(self, method: str, calls: Sequence[Awaitable[Any]]) -> list[Any]:
        # vLLM never answers a call to an engine that has died.
        pending = asyncio.gather(*calls, return_exceptions=True)
        while not (await asyncio.wait([pending], timeout=DEATH_WATCH))[0]:
            if getattr(self._core.resources, "engine_dead", False):
                pending.cancel()
                raise RuntimeError(f"{method} cannot be answered: an engine core has died, as the server's output says")
        answers = pending.result()
        failed = {rank: answer for rank, answer in enumerate(answers) if isinstance(answer, BaseException)}
        if failed:
            each = "; ".join(f"replica {rank}: {error or type(error).__name__}" for rank, error in failed.items())
            raise RuntimeError(f"{method} failed in {len(failed)} of {len(self)} replicas: {each}")
        return answers


def replica_seed(seed: int, replica: int, turn: int = 0) -> int:
    """The seed of one replica: equal seeds would give two replicas the same random numbers, and equal rollouts.

    Args:
        seed: Of the server, at least 0.
        replica: Its rank.
        turn: Counts the times that an engine was enabled without a new seed.

    Returns:
        A number below 2^63.
    """
    return int(np.random.SeedSequence([seed, replica, turn]).generate_state(1, np.uint64)[0] >> np.uint64(1))
