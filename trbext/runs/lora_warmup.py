"""Warms a student up before its run, as Simple-OPD does (arXiv 2608.06802): LoRA on teacher rollouts, then merged.

The warmup is a run of its own in the folder beside that of the run, `<output_dir>-warmup`. It is supervised on the
teacher's completions of the first prompts, and resumes by itself. Its trained model, the adapter merged into its
weights, is the student with which the run begins, and its cost is part of the run's.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..training.config import TRBConfig
from .folder import RunFolder
from .inputs import load_inputs
from .resume_rules import LENGTH, changes
from .settings import RunArguments, parse_settings
from .train import Resume, check_folder, first_line, train_run

# Fields of a run that its warmup does not take over: of its evaluation, its loss, who writes its rollouts, and its
# repository on the Hub.
OF_THE_RUN = (
    *("eval_prompts", "eval_prompts_split", "eval_prompts_limit", "eval_verifier", "eval_samples", "eval_strategy"),
    *("eval_steps", "eval_on_start", "eval_delay", "load_best_model_at_end", "metric_for_best_model"),
    *("loss_estimator", "loss_top_k", "loss_weight_cap", "loss_weighted", "loss_log_ratio_cap", "loss_prefix_tokens"),
    *("proximal_alpha", "position_gamma", "veto_start", "veto_steps", "use_vllm", "teacher_from_engine"),
    *("rollout_length_points", "rollout_length_start", "rollout_policy_kwargs", "lora_sft_steps", "run_name"),
    *("lora_learning_rate", "top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs"),
    *("cache_implementation", "push_to_hub", "hub_model_id", "hub_strategy", "hub_revision", "hub_always_push"),
)
# Values that ask for evaluations, of which a warmup has none.
BY_EVALUATIONS = {"save_strategy": ("best",), "lr_scheduler_type": ("reduce_lr_on_plateau", "greedy")}


def warmup_folder(output_dir: str | Path) -> Path:
    """Returns the folder of the warmup of the run in `output_dir`."""
    path = Path(output_dir)
    return path.with_name(f"{path.name}-warmup")


def train_warmed_up(
    arguments: RunArguments, config: TRBConfig, settings: dict[str, Any], *, resume: Resume = False, plot: bool = True
) -> RunFolder:
    """Trains a run as `train_run` does, after the warmup that its fields ask for, if they do.

    Args:
        arguments: As of `train_run`, like all that follow.
        config: All other fields.
        settings: The explicit settings by name.
        resume: How the run begins. The warmup continues if there is one, and begins if not; a run that was stopped in
            its warmup, and so has no folder, begins after it.
        plot: Whether to make plot.png.

    Returns:
        The folder of the run.

    Raises:
        UsageError: As `train_run`, also of the warmup.
        Interrupted: As `train_run`.
        NonFiniteTraining: As `train_run`.
        DiskFailed: As `train_run`.
    """
    folder = RunFolder(Path(config.output_dir))
    try:
        folder.check_name()
        if arguments.lora_sft_steps is not None:
            RunFolder(warmup_folder(folder.path)).check_name()  # which has a longer one
    except ValueError as error:
        raise UsageError(str(error)) from error
    if arguments.lora_sft_steps is None or (
        resume is not False
        and folder.is_finished(with_curves=plot)
        and LENGTH.isdisjoint(changes(folder.settings() or {}, settings))
    ):
        return train_run(arguments, config, settings, resume=resume, plot=plot)
    in_warmup = folder.settings() is None and RunFolder(warmup_folder(folder.path)).settings() is not None
    if resume is True and in_warmup:
        resume = "auto"
    # 1. Refuse what the run would refuse, before its warmup takes time.
    check_folder(folder, settings, folder.settings() is not None if resume == "auto" else resume, config)
    try:
        load_inputs(arguments, config)
    except (ValueError, OSError) as error:
        raise UsageError(first_line(error)) from error
    # 2. Train the adapter, and merge it.
    taken = {
        name: value
        for name, value in settings.items()
        if name not in OF_THE_RUN and not name.startswith("vllm_") and value not in BY_EVALUATIONS.get(name, ())
    }
    if "lr_scheduler_type" in settings and "lr_scheduler_type" not in taken:
        taken.pop("lr_scheduler_kwargs", None)
    of_warmup = {
        **taken,
        "output_dir": str(warmup_folder(config.output_dir)),
        "rollout_policy": "sft",
        "sft_steps": arguments.lora_sft_steps,
        "max_steps": arguments.lora_sft_steps,
        "eval_strategy": "no",
        "learning_rate": arguments.lora_learning_rate or config.learning_rate,
    }
    warmup = train_run(*parse_settings(of_warmup), resume="auto", plot=False, followed=True)
    # 3. Train the merged student.
    warmed_up = dataclasses.replace(
        arguments, model_name_or_path=str(warmup.model), lora_rank=None, lora_sft_steps=None, lora_learning_rate=None
    )
    return train_run(
        warmed_up,
        config,
        settings,
        resume=resume,
        plot=plot,
        carried=cost_of(warmup),
    )


def cost_of(run: RunFolder) -> dict[str, float]:
    """Returns the cost of a finished run by metric, as its last log has it."""
    last = next(line for line in reversed(run.read_metrics()) if "compute/seconds" in line)
    return {name: value for name, value in last.items() if name.startswith("compute/")}


def forget_warmup(output_dir: Path, *, keep_model: bool) -> None:
    """Deletes what of a finished warmup served to resume it, and its model unless that is kept."""
    folder = RunFolder(warmup_folder(output_dir))
    for checkpoint in folder.path.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    if not keep_model and folder.model.exists():
        shutil.rmtree(folder.model)
