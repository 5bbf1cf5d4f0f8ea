"""Runs verl's agent loops for TRB: validation without a budget, and the teacher's rows from the rollout.

`rollout.agent.agent_loop_manager_class` names `TRBAgentLoopManager`, with which verl starts these workers.
"""

from __future__ import annotations

import copy
from typing import Any

import ray
from omegaconf import open_dict
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from ..vllm.requests import EPSILON
from ..vllm.server.stored_alignment import align_stored
from .answers import IDS, LOG_PROBS, check_whole
from .run_checks import has_teacher_pool, teacher_path
from .teacher_rows import rows_of_pool


class TRBAgentLoopWorker(AgentLoopWorkerTQ.__ray_actor_class__):  # type: ignore[misc]  # verl is untyped
    """Runs agent loops on one node. Takes the arguments of verl's `AgentLoopWorker`."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        self.teacher_pool = has_teacher_pool(config)
        own = config
        if not self.teacher_pool:  # verl would look for its servers
            own = copy.deepcopy(config)
            with open_dict(own):
                own.distillation.enabled = False
        super().__init__(own, *args, **kwargs)
        self.alignment = (
            align_stored(
                self.model_config.local_path,
                teacher_path(config),
                trust_remote_code=self.model_config.trust_remote_code,
            )
            if self.teacher_pool
            else None
        )

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **others: Any) -> Any:
        if trajectory["validate"]:
            sampling_params = {**sampling_params, "extra_args": {EPSILON: 0.0}}  # the student is what is measured
        return await super()._run_agent_loop(sampling_params, trajectory, **others)

    async def _compute_teacher_logprobs(
        self,
        output: Any,
        prompt_ids: list[int],
        response_ids: list[int],
        validate: bool,
        sample_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Sees to it that a completion has the teacher's rows, which no loss needs of a validation."""
        check_whole(output.extra_fields, prompt_ids, response_ids)
        if validate:
            for name in (IDS, LOG_PROBS):
                output.extra_fields.pop(name, None)
            return
        if self.alignment is not None:
            await super()._compute_teacher_logprobs(output, prompt_ids, response_ids, validate, sample_kwargs)
            fields = output.extra_fields
            fields[IDS], fields[LOG_PROBS] = rows_of_pool(fields[IDS], fields[LOG_PROBS], self.alignment)
        elif IDS not in output.extra_fields:
            raise ValueError(f"the rollout must bring {IDS}: rollout.custom.trb.top_k must be at least 1")


class TRBAgentLoopManager(AgentLoopManagerTQ):  # type: ignore[misc]  # verl is untyped
    """Starts agent loop workers. Takes the arguments of verl's `AgentLoopManager`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(TRBAgentLoopWorker)
