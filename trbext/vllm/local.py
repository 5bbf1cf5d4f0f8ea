"""Reaches a TRB engine that this process made with `vllm.LLM`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .requests import EPSILON, HELD_OUT, KEY, check_request
from .transport import Completion, Records, RolloutRequest


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
            RuntimeError: the workers do not agree on what they are.
        """
        answers: list[dict[str, Any]] = self.llm.collective_rpc("trb_enable", kwargs=settings)
        if any(answer != answers[0] for answer in answers):
            raise RuntimeError(f"all workers of an engine must give the same handshake, got {answers}")
        return answers[0]

    def generate(self, requests: Sequence[RolloutRequest]) -> list[Completion]:
        """Decodes all requests.

        Raises:
            RuntimeError: a completion does not begin with the token that its request held out.
        """
        from vllm import SamplingParams

        parameters = []
        for request in requests:
            extra: dict[str, Any] = {HELD_OUT: request.prompt[-1], KEY: request.key}
            if request.epsilon is not None:
                extra[EPSILON] = request.epsilon
            parameters.append(
                SamplingParams(
                    temperature=request.temperature,
                    max_tokens=request.max_new_tokens + 1,  # and the held-out token
                    ignore_eos=True,  # vLLM's is the teacher's
                    stop_token_ids=[request.stop],
                    detokenize=False,
                    extra_args=extra,
                )
            )
            check_request(parameters[-1])
        prompts = [{"prompt_token_ids": request.prompt[:-1]} for request in requests]
        outputs = [answer.outputs[0] for answer in self.llm.generate(prompts, parameters, use_tqdm=False)]
        return [Completion(list(output.token_ids), output.finish_reason == "stop") for output in outputs]

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
        self._reset_prefix_cache()

    def load_student_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Loads the student's weights from this process.

        Args:
            weights: by their names on the Hugging Face hub.

        Raises:
            RuntimeError: the workers are processes of their own.
        """
        self.worker.trb_load_student_weights(weights)
        self._reset_prefix_cache()

    @property
    def worker(self) -> Any:
        """vLLM's worker with our `WorkerExtension`.

        Raises:
            RuntimeError: the workers are processes of their own.
        """
        worker = getattr(getattr(self.llm.llm_engine, "model_executor", None), "driver_worker", None)
        if worker is None:
            raise RuntimeError(
                "the engine must be in this process, so that it takes tensors: set VLLM_ENABLE_V1_MULTIPROCESSING=0, "
                "or load the student from a folder"
            )
        return getattr(worker, "worker", worker)

    def digest(self) -> list[dict[str, str]]:
        """`WorkerExtension.trb_digest` of each worker."""
        return list(self.llm.collective_rpc("trb_digest"))

    @contextmanager
    def random_state(self) -> Iterator[None]:
        """Keeps torch's global generators as they were, from which the drafts of an engine in this process come."""
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            yield

    def _reset_prefix_cache(self) -> None:
        if not self.llm.reset_prefix_cache():  # it holds keys and values of the student's old weights
            raise RuntimeError("the prefix cache could not be reset: requests are still running")
