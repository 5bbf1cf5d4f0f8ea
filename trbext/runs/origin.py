"""Compares what decides a run beside its settings: the number of processes, and the contents of its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..data.prompts_digest import prompts_digest
from ..models.stored_digest import model_digest


def origin_of(
    *,
    processes: int,
    rollouts: int,
    prompts: Dataset,
    held_out: Dataset | None,
    student: str,
    teachers: list[str],
    served: str | None = None,
) -> dict[str, Any]:
    """Describes the origin of a run.

    Args:
        processes: That train.
        rollouts: In an optimizer step, over all processes.
        prompts: To train on.
        held_out: For evaluation, if there are any.
        student: Path or name of the model.
        teachers: Paths or names of the models that have weights of their own.
        served: The name that a server gives its model, which is then the teacher. It may be a path, of which only the
            last part counts.

    Returns:
        The origin, as JSON holds it.
    """
    digests = [model_digest(teacher) for teacher in teachers]
    return {
        "processes": processes,
        "rollouts_per_step": rollouts,
        "prompts": prompts_digest(prompts),
        "eval_prompts": None if held_out is None else prompts_digest(held_out),
        "student": model_digest(student),
        "teacher": f"served: {Path(served).name}" if served else digests[0] if len(digests) == 1 else digests,
    }


def check_origin(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Checks that a run continues from the origin that it began with.

    Args:
        before: The origin when the run began.
        now: The origin when it continues.

    Returns:
        A warning if the number of processes is another, None if it is not.

    Raises:
        ValueError: Prompts or models have changed, or an optimizer step would have another number of rollouts.
    """
    prompts = {"prompts": "training prompts", "eval_prompts": "held-out prompts"}
    for name, what in {**prompts, "student": "student", "teacher": "teacher"}.items():
        if before.get(name) and now.get(name) and before[name] != now[name]:
            raise ValueError(f"was started with other contents of the {what}, which have changed since")
    check_step_size(before, int(now["processes"]), int(now["rollouts_per_step"]))
    if before.get("processes", now["processes"]) == now["processes"]:
        return None
    return (
        f"the run was started on {before['processes']} processes and continues with {now['processes']}: it takes the "
        "same prompts, but each process draws random numbers of its own, so its rollouts are others"
    )


def check_step_size(before: Mapping[str, Any], processes: int, rollouts: int) -> None:
    """Checks that an optimizer step has as many rollouts as before.

    Raises:
        ValueError: It has another number.
    """
    if before.get("rollouts_per_step", rollouts) != rollouts:
        raise ValueError(
            f"was started with {before['rollouts_per_step']} rollouts in an optimizer step, on {before['processes']} "
            f"processes, and would continue with {rollouts}, on {processes}: keep per_device_train_batch_size x "
            f"gradient_accumulation_steps x processes at {before['rollouts_per_step']}"
        )
