"""Decides which settings may change between a run and its continuation: those that change no step already taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..training.config import TRBConfig

# They say how often and to which places the run is logged, evaluated and saved, and where its server is. No step
# depends on them, but for `_OF_EVALUATIONS`.
FREE_ON_RESUME = {
    *("output_dir", "save_steps", "save_total_limit", "save_strategy", "report_to", "run_name", "disable_tqdm"),
    *("logging_steps", "logging_strategy", "logging_first_step", "logging_dir", "log_completions"),
    *("num_completions_to_print", "eval_steps", "eval_strategy", "eval_on_start", "eval_delay"),
    *("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers"),
    *("push_to_hub", "hub_model_id", "hub_strategy", "hub_revision", "hub_always_push"),
    *("vllm_max_model_length", "vllm_gpu_memory_utilization"),
    *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "teacher_url"),
}
# They may change if an optimizer step has as many rollouts as before.
OF_A_STEP = {"per_device_train_batch_size", "gradient_accumulation_steps"}
LENGTH = {"max_steps", "num_train_epochs"}
# Learning rates that do not know how many steps there will be.
_OPEN_ENDED = {"constant", "constant_with_warmup", "inverse_sqrt"}
# Learning rates that take a step at each evaluation, by its outcome.
_BY_EVALUATION = {"reduce_lr_on_plateau", "greedy"}
_OF_EVALUATIONS = {"eval_steps", "eval_strategy", "eval_on_start", "eval_delay"}
_DURATIONS = ("warmup_steps", "trb_warmup_steps", "temperature_warmup_steps", "sft_steps", "veto_steps")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Returns the settings that differ, by name, as "old -> new"; num_train_epochs only if it decides the length."""
    by_steps = all(type(each.get("max_steps")) is int and each["max_steps"] > 0 for each in (before, now))
    pairs = {name: (before.get(name, "unset"), now.get(name, "unset")) for name in sorted({*before, *now})}
    found = {name: f"{old} -> {new}" for name, (old, new) in pairs.items() if old != new}
    if by_steps:
        found.pop("num_train_epochs", None)
    return found


def check_changes(changed: Mapping[str, str], config: TRBConfig, *, other_processes: bool = False) -> None:
    """Checks that a run that continues with changed settings is the same run.

    Args:
        changed: As `changes` returns them.
        config: The settings as they are now.
        other_processes: Whether the number of processes is another, so that batch and accumulation must change.

    Raises:
        ValueError: It would be another run.
    """
    free = FREE_ON_RESUME | LENGTH | (OF_A_STEP if other_processes else set())
    if {"unset", "None"}.intersection(changed.get("teacher_url", "").split(" -> ")):
        free = free - {"teacher_url"}  # the teacher would become another, and with it the loss
    refused = ", ".join(f"{name}: {change}" for name, change in changed.items() if name not in free)
    if refused:
        raise ValueError(f"was started with other settings ({refused}); a resumed run repeats its own")
    kind = _schedule(config)
    if kind in _BY_EVALUATION:
        # transformers evaluates every logging_steps if eval_steps is not set.
        every = (
            {"logging_steps"} if config.eval_strategy == "steps" and config.eval_steps == config.logging_steps else ()
        )
        evaluations = _OF_EVALUATIONS.union(every)
        refused = ", ".join(f"{name}: {change}" for name, change in changed.items() if name in evaluations)
        if refused:
            raise ValueError(
                f"was started with other evaluations ({refused}), and lr_scheduler_type {kind!r} takes a step at each: "
                "a resumed run repeats its own"
            )
    for name in sorted(LENGTH & changed.keys()):
        reason = _depends_on_length(config)
        if reason:
            raise ValueError(
                f"was started with another {name} ({changed[name]}), and {reason}: its steps would have been others. "
                "Only a run of a constant learning rate and whole numbers of steps can be extended"
            )


def _schedule(config: TRBConfig) -> str:
    return str(getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type))


def _depends_on_length(config: TRBConfig) -> str | None:
    kind = _schedule(config)
    if kind not in _OPEN_ENDED:
        return f"lr_scheduler_type {kind!r} depends on it"
    for name in _DURATIONS:
        if 0 < float(getattr(config, name) or 0) < 1:
            return f"{name} {getattr(config, name)} is a share of it"
    return None
