"""Serves the rollouts of one replica: verl's vLLM server, with the teacher as its model and the student as its draft.

The agent loops of verl ask it for completions as they ask verl's own. Its answers follow mu at the budget of the step
whose weights it has, and bring the teacher's rows for the loss (`trbext.verl.teacher_rows`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from ..vllm.engine import VERL_WORKER_EXTENSION, engine_args
from ..vllm.in_process import ENVIRONMENT
from ..vllm.server.replicas import replica_seed
from ..vllm.server.stored_alignment import align_stored
from ..vllm.transport import EngineCompletion, Records, RolloutRequest
from .answers import extra_fields_of, log_probs_of
from .rollouts import ReplicaAnswer, ReplicaRollouts
from .run_checks import ROLLOUT
from .sampling import Asked
from .server_checks import check_engine_kwargs, check_rollout_config
from .settings import RolloutSettings


class TRBServer(vLLMHttpServer):  # type: ignore[misc]  # verl is untyped
    """One node of a replica. Takes the arguments of verl's `vLLMHttpServer`."""

    trb: RolloutSettings
    epsilon: float  # KL budget of rollouts with the present weights, nats per token
    teacher_digests: list[str]  # of each worker's part of the teacher, before the first rollout
    handshake: dict[str, Any]
    rollouts: ReplicaRollouts
    first_error: str | None = None  # of a rollout, since the counters were asked for

    def _validate_configs(self) -> None:
        super()._validate_configs()
        self.trb = RolloutSettings.of(self.config.custom)
        check_rollout_config(self.config, self.model_config, self.trb)
        self.epsilon = self.trb.schedule(0)
        # Read when the engine starts, in processes that inherit them: the model runner that the hook knows.
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = ENVIRONMENT["VLLM_USE_V2_MODEL_RUNNER"]

    def _preprocess_engine_kwargs(self, engine_kwargs: dict[str, Any]) -> None:
        check_engine_kwargs(engine_kwargs)
        super()._preprocess_engine_kwargs(engine_kwargs)
        arguments = engine_args(
            self.trb.teacher,
            self.model_config.local_path,
            draft_length=self.trb.draft_length,
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
            tensor_parallel_size=self.config.tensor_model_parallel_size,
        )
        engine_kwargs["speculative_config"] = arguments["speculative_config"]

    def _get_worker_extension_cls(self) -> str:
        return VERL_WORKER_EXTENSION

    def _resolve_sleep_level(self) -> int:
        return 1  # level 2 would discard the teacher, which no sync brings back

    async def run_server(self, args: Any) -> None:
        """Starts the engine, with the teacher as its model, and enables it before anybody knows its address.

        Args:
            args: vLLM's Namespace, made for the student's path.
        """
        args.model = args.model_tag = self.trb.teacher
        await super().run_server(args)
        await self._enable()

    async def run_headless(self, args: Any) -> None:
        """Starts the workers of another node of the replica.

        Args:
            args: vLLM's Namespace, made for the student's path.
        """
        args.model = args.model_tag = self.trb.teacher
        await super().run_headless(args)

    async def _enable(self) -> None:
        alignment = align_stored(
            self.model_config.local_path, self.trb.teacher, trust_remote_code=self.model_config.trust_remote_code
        )
        answers = await self._call(
            "trb_enable",
            width=alignment.width,
            stop=alignment.stop,
            merged=list(alignment.duplicates),
            top_k=self.trb.top_k,
        )
        if any(answer != answers[0] for answer in answers):
            raise RuntimeError(f"all workers of a replica must give the same handshake, got {answers}")
        self.handshake = answers[0]
        self.rollouts = ReplicaRollouts(
            alignment,
            self._take_records,
            max_model_len=self.handshake["max_model_len"],
            draft_length=self.trb.draft_length,
            top_k=self.trb.top_k,
            repair=self.trb.repair,
        )
        needed = self.config.prompt_length + self.config.response_length
        if needed > self.rollouts.longest:  # its draft model, or engine_kwargs, may allow less than max_model_len
            raise ValueError(
                f"the engine must hold prompt_length + response_length = {needed} tokens, got {self.rollouts.longest}: "
                f"its max_model_len is {self.handshake['max_model_len']} with the draft model's, of which "
                "3 draft_length + 1 are for drafts"
            )
        self.teacher_digests = await self._digests()

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Calls a method of `WorkerExtension` on all workers. verl's `collective_rpc` drops their answers."""
        return list(await self.engine.collective_rpc(method, args=args, kwargs=kwargs))

    async def _take_records(self) -> list[Records]:
        from safetensors.numpy import load

        return [load(answer) for answer in await self._call("trb_take_records") if answer is not None]

    async def _digests(self) -> list[str]:
        return [digests["teacher"] for digests in await self._call("trb_digest")]

    async def set_global_steps(self, global_steps: int) -> None:
        """Takes note that the engine has the weights of a step, whose budget and random numbers it uses from now on.

        Args:
            global_steps: verl's, the number of steps that the weights have been trained; 0 before the first.

        Raises:
            RuntimeError: The teacher is not the one that the engine was started with.
        """
        await super().set_global_steps(global_steps)
        if self.node_rank != 0:
            return
        found = await self._digests()
        if found != self.teacher_digests:
            raise RuntimeError(
                f"the teacher's weights must stay as they were, got others in replica {self.replica_rank} after the "
                f"student of step {global_steps} was loaded"
            )
        self.epsilon = self.trb.schedule(global_steps)
        await self._call("trb_seed", replica_seed(self.config.seed, self.replica_rank, global_steps))

    async def trb_facts(self) -> dict[str, Any]:
        """What this replica is: its handshake, its teacher's digests and its settings."""
        return {"handshake": self.handshake, "teacher": self.teacher_digests, "settings": self.trb}

    async def trb_counters(self) -> dict[str, Any]:
        """What `Counters.read` has counted since the last call, and the `error` of the first rollout that failed.

        All workers count the same.
        """
        error, self.first_error = self.first_error, None
        return {**(await self._call("trb_counters", True))[0], "error": error}

    async def generate(
        self,
        prompt_ids: list[int],
        sampling_params: Mapping[str, Any],
        request_id: str,
        **others: Any,
    ) -> TokenOutput:
        """Draws a completion from mu.

        Args:
            prompt_ids: At least two.
            sampling_params: verl's: temperature, and optionally max_tokens, logprobs, and `trb_epsilon` in extra_args.
            request_id: verl's.
            others: As verl's; no pictures, sounds or transferred caches.

        Returns:
            The completion, its log-probabilities under mu, and in `extra_fields` what `extra_fields_of` says.

        Raises:
            ValueError: A parameter would change the law of a token, or a length does not fit.
            RuntimeError: As `ReplicaRollouts.draw`.
        """
        try:
            return await self._draw_completion(prompt_ids, sampling_params, request_id, others)
        except Exception as error:  # verl would log it, and train on the other rollouts
            if self.first_error is None:
                self.first_error = f"{type(error).__name__}: {error}"
            raise

    async def _draw_completion(
        self, prompt_ids: list[int], sampling_params: Mapping[str, Any], request_id: str, others: Mapping[str, Any]
    ) -> TokenOutput:
        prompt = [int(token) for token in prompt_ids]
        asked = Asked.of(sampling_params, others, self.config, len(prompt), self.epsilon)
        preempted: list[int] = []
        fields: dict[str, Any] = {}

        async def ask(request: RolloutRequest, number: int) -> ReplicaAnswer:
            output = await super(TRBServer, self).generate(
                prompt_ids=request.prompt[:-1],
                sampling_params=asked.of_engine(request, number),
                request_id=f"{request_id}-{number}",
                priority=asked.priority,
            )
            preempted.append(output.num_preempted or 0)
            for name, value in output.extra_fields.items():
                fields.setdefault(name, value)  # of the first request, whose prompt is the caller's
            completion = EngineCompletion.of(request, list(output.token_ids))
            return ReplicaAnswer(completion, output.stop_reason == "aborted" and not completion.finished)

        drawn = await self.rollouts.draw(
            prompt,
            ask,
            epsilon=asked.epsilon,
            max_new_tokens=asked.max_new_tokens,
            temperature=asked.temperature,
        )
        return TokenOutput(
            token_ids=drawn.tokens,
            log_probs=log_probs_of(drawn) if asked.log_probs else None,
            stop_reason="aborted" if drawn.aborted else "completed",
            num_preempted=sum(preempted),
            extra_fields={**fields, "global_steps": self.global_steps, **extra_fields_of(drawn, prompt, asked.epsilon)},
        )


class TRBReplica(vLLMReplica):  # type: ignore[misc]  # verl is untyped
    """A replica of TRB servers, which verl makes by the rollout name `trb_vllm`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        import ray

        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(TRBServer)

    def _get_server_name_prefix(self) -> str:
        return f"{ROLLOUT}_"  # as verl's ServerAdapter looks for it
