"""Defines the fields of a run that say how vLLM draws its rollouts, beside TRL's `use_vllm` and `vllm_mode`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...vllm.engine import DRAFT_LENGTH
from ...vllm.requests import LEAST_ENGINE_TEMPERATURE
from .teacher import BUDGETED

MODES = ("colocate", "server")
AFTER_WARMUP = ("student", "keep")
# Arguments of vLLM's engine that follow from other fields, or that would take the rollouts' law away.
TAKEN = {
    "model": "model_name_or_path and teacher_model_name_or_path",
    "worker_extension_cls": "trbext itself",
    "enable_sleep_mode": "nothing, as the teacher's weights would be lost",
    "tensor_parallel_size": "vllm_tensor_parallel_size",
    "max_model_len": "vllm_max_model_length",
    "gpu_memory_utilization": "vllm_gpu_memory_utilization",
}


@dataclass
class EngineFields:
    """Rollouts that vLLM draws from the run's policy, with the teacher as its model and the student as its draft."""

    vllm_after_warmup: str = field(
        default="student",
        metadata={
            "help": "The colocated engine once the KL budget stays 0 to the end of the run: 'student' = an engine of "
            "only the student takes over, and the teacher's memory is freed; 'keep' = the engine stays."
        },
    )
    vllm_repair: bool = field(
        default=True,
        metadata={
            "help": "Draw a rollout again from the token at which the engine lost the student's drafts, by preemption "
            "say, and took one of the teacher's. False = such a token ends the run with an error."
        },
    )
    vllm_engine_args: dict[Any, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Further arguments of the colocated vLLM engine, as a mapping, such as "
            '{"enforce_eager": true, "kv_cache_memory_bytes": 1073741824}.'
        },
    )
    teacher_from_engine: bool = field(
        default=False,
        metadata={
            "help": "Take what loss_top_k needs of the teacher from the engine that draws the rollouts, so that no "
            "process of the trainer loads the teacher. The engine then holds it for the whole run."
        },
    )


def check_engine(config: Any) -> None:
    """Checks the fields of a `TRBConfig` that have to do with vLLM.

    Raises:
        ValueError: A field is out of range, or the engine could not keep a promise of the run.
    """
    if config.vllm_after_warmup not in AFTER_WARMUP:
        raise ValueError(
            f"vllm_after_warmup must be one of {', '.join(AFTER_WARMUP)}, got {config.vllm_after_warmup!r}"
        )
    given = config.vllm_engine_args
    if given is not None and not isinstance(given, dict):
        raise ValueError(f'vllm_engine_args must be a mapping such as {{"enforce_eager": true}}, got {given!r}')
    if not config.use_vllm:
        for name in ("teacher_from_engine", "vllm_engine_args"):
            if getattr(config, name):
                raise ValueError(f"{name} belongs to rollouts from vLLM: set use_vllm, or leave it out")
        return
    for reason in _refusals(config):
        raise ValueError(reason)


def _refusals(config: Any) -> Iterator[str]:
    """Yields the reasons why vLLM cannot draw the rollouts of a run."""
    if config.vllm_mode not in MODES:
        yield f"vllm_mode must be one of {', '.join(MODES)}, got {config.vllm_mode!r}"
    if config.rollout_policy not in BUDGETED:
        yield (
            f"use_vllm draws the rollouts of {', '.join(BUDGETED)}, each of which is a KL budget, got "
            f"rollout_policy={config.rollout_policy!r}"
        )
    for name, value in config.altered_sampling():
        yield f"use_vllm samples the whole softmax at temperature, which {name}={value!r} would change: leave it out"
    if config.vllm_structured_outputs_regex is not None:
        yield "use_vllm samples the whole softmax, which vllm_structured_outputs_regex would change: leave it out"
    if config.vllm_enable_sleep_mode:
        yield "vllm_enable_sleep_mode drops the weights of the teacher, which nothing brings back: leave it out"
    if not config.temperature >= LEAST_ENGINE_TEMPERATURE:
        least = LEAST_ENGINE_TEMPERATURE
        yield f"vLLM samples at temperatures of at least {least}, got temperature={config.temperature}"
    if config.draft_length == 0:
        yield "vLLM draws rollouts by speculation, for which draft_length must be at least 1, got 0"
    if config.vllm_mode == "colocate" and config.vllm_tensor_parallel_size != 1:
        yield (
            "an engine in the processes of the trainer holds both models whole, so vllm_tensor_parallel_size must be "
            f"1, got {config.vllm_tensor_parallel_size}: shard them in a server (vllm_mode server)"
        )
    if config.vllm_mode == "server" and config.vllm_engine_args:
        yield "a server takes the arguments of vLLM when it starts (trb vllm-serve): leave vllm_engine_args out"
    for name in config.vllm_engine_args or {}:
        if name in TAKEN:
            yield f"vllm_engine_args: {name} is set by {TAKEN[name]}: leave it out"
    if config.teacher_from_engine and config.loss_estimator != "top_k":
        yield (
            "teacher_from_engine brings the teacher's distribution over the student's top tokens: set loss_top_k, got "
            f"loss_estimator={config.loss_estimator!r}"
        )
    if config.teacher_from_engine and config.veto_start != 0:
        yield (
            "teacher_from_engine does not bring the whole distribution of the teacher, which Veto's target needs, got "
            f"veto_start={config.veto_start}"
        )
    if config.teacher_from_engine and config.of_whole_teacher is not None:
        yield f"teacher_from_engine does not bring the whole distribution of the teacher, got {config.of_whole_teacher}"


def engine_draft_length(config: Any) -> int:
    """Returns the draft length of an engine. Nothing measures costs there, so "auto" is a fixed number."""
    return DRAFT_LENGTH if config.draft_length == "auto" else int(config.draft_length)
