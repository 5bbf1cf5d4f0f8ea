"""Reaches a TRB engine that this process made with `vllm.LLM`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from ..errors import EngineFailed
from .in_process import keeping_random_state, reset_prefix_cache, shut_down, worker_of
from .requests import check_request
from .transport import EngineCompletion, Records, RolloutRequest


class LocalEngine:
    """The `Engine` of an `LLM` that was made with `trbext.vllm.engine.engine_args`.

    Args:
        llm: vLLM's, whose models may be in this process or in workers of its own.
    """

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def enable(self, **settings: Any) -> dict[str, Any]:
        """Installs the hook in every worker (`WorkerExtension.trb_enable`).

        Raises:
            EngineFailed: The workers do not agree on what they are.
        """
        answers: list[dict[str, Any]] = self.llm.collective_rpc("trb_enable", kwargs=settings)
        if any(answer != answers[0] for answer in answers):
            raise EngineFailed(f"all workers of an engine must give the same handshake, got {answers}")
        return answers[0]

    def generate(self, requests: Sequence[RolloutRequest]) -> list[EngineCompletion]:
        """Decodes all requests.

        Raises:
            ValueError: A request is one that `check_request` refuses.
        """
        from vllm import SamplingParams

        parameters = []
        for request in requests:
            parameters.append(
                SamplingParams(
                    temperature=request.temperature,
                    max_tokens=request.max_new_tokens + 1,  # and the held-out token
                    ignore_eos=True,  # vLLM's is the teacher's
                    stop_token_ids=request.stop_token_ids,
                    detokenize=False,
                    extra_args=request.extra_args(),
                )
            )
            check_request(parameters[-1])
        prompts = [{"prompt_token_ids": request.prompt[:-1]} for request in requests]
        answers = self.llm.generate(prompts, parameters, use_tqdm=False)
        return [
            EngineCompletion.of(request, list(answer.outputs[0].token_ids))
            for request, answer in zip(requests, answers, strict=True)
        ]

    def set_epsilon(self, epsilon: float) -> None:
        """Sets the budget of requests that name none, nats per token."""
        self.llm.collective_rpc("trb_set_epsilon", args=(epsilon,))

    def seed(self, seed: int) -> None:
        """Sets the seed of all random numbers of the engine."""
        self.llm.collective_rpc("trb_seed", args=(seed,))

    def counters(self, *, clear: bool = False) -> list[dict[str, Any]]:
        """The counters of the engine. All its workers have the same."""
        return list(self.llm.collective_rpc("trb_counters", args=(clear,))[:1])

    def take_records(self) -> list[Records]:
        """The records of the engine since the last call."""
        from safetensors.numpy import load

        return [load(answer) for answer in self.llm.collective_rpc("trb_take_records") if answer is not None]

    def preemptions(self) -> int | None:
        """Preemptions since the engine started; None unless it was made with disable_log_stats=False."""
        if not self.llm.llm_engine.log_stats:
            return None
        metrics = self.llm.get_metrics()
        return int(sum(metric.value for metric in metrics if metric.name == "vllm:num_preemptions"))

    def load_student(self, folder: str) -> None:
        """Loads the student's weights from a folder of safetensors, and drops what was cached of the old ones."""
        self.llm.collective_rpc("trb_load_student", args=(folder,))
        reset_prefix_cache(self.llm)

    def load_student_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Loads the student's weights from this process.

        Args:
            weights: By their names on the Hugging Face hub.

        Raises:
            RuntimeError: The workers are processes of their own.
        """
        self.worker.trb_load_student_weights(weights)
        reset_prefix_cache(self.llm)

    @property
    def worker(self) -> Any:
        """vLLM's worker with our `WorkerExtension`.

        Raises:
            RuntimeError: The workers are processes of their own.
        """
        return worker_of(self.llm)

    def digest(self) -> list[dict[str, str]]:
        """`WorkerExtension.trb_digest` of each worker."""
        return list(self.llm.collective_rpc("trb_digest"))

    def random_state(self) -> AbstractContextManager[None]:
        """Keeps torch's global generators as they were, from which the drafts of an engine in this process come."""
        return keeping_random_state()

    def shut_down(self) -> None:
        """Ends an engine of this process. Its memory is free once nothing refers to this object any more."""
        shut_down(self.llm)
