"""Trains a run in a folder with `TRBTrainer`, from the beginning or from its last checkpoint: `trb train`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PrinterCallback, ProgressCallback, TrainerState

from ..data.demo_models import model_path
from ..errors import DiskFailed, Interrupted, UsageError, VerifierFailed, is_of_disk
from ..models.model_kind import UnsupportedModel
from ..teachers.remote.teacher import RemoteTeacher
from ..training.checkpoints.completeness import IncompleteCheckpoint, step_of
from ..training.checkpoints.contents import STATE, state_fault
from ..training.config import TRBConfig
from ..training.fields.teacher import SELF
from ..training.lora import lora, save_merged
from ..training.metrics.metric_table import first_and_last
from ..training.model_card import Provenance, name_of
from ..training.student import check_can_be_saved
from ..training.trainer import TRBTrainer
from .callbacks import MetricsFile, ProgressDisplay, StopOnSignal
from .folder import RunFolder, has_curves, left_as_it_was
from .inputs import load_inputs
from .launch import check_one_group
from .origin import check_origin, check_step_size, origin_of
from .printing import printing_survives
from .resume_rules import LENGTH, changes, check_changes
from .settings import RunArguments

logger = logging.getLogger(__name__)

Resume = bool | Literal["auto"]  # "auto": continue the run if there is one, begin it if not


def train_run(
    arguments: RunArguments,
    config: TRBConfig,
    settings: dict[str, Any],
    *,
    resume: Resume = False,
    plot: bool = True,
    carried: Mapping[str, float] | None = None,
    followed: bool = False,
) -> RunFolder:
    """Trains in `config.output_dir` and returns the folder.

    Args:
        arguments: Models and prompts.
        config: All other fields.
        settings: The explicit settings by name, which config.yaml will hold.
        resume: True continues from the last checkpoint; False begins in an empty folder; "auto" continues if the folder
            holds a run. A run whose last step is trained trains nothing: what is missing of `model/` and the plot is
            written.
        plot: Whether to make plot.png. If it cannot be made, there is a warning: the model is saved before.
        carried: What a warmup of the student has cost, by metric, from which the run's cost is counted.
        followed: Whether this process trains another run afterwards, which a signal in the last step keeps from that.

    Returns:
        The folder of the run.

    Raises:
        UsageError: The folder is not empty, holds other settings or is another process's; a model or prompts cannot be
            loaded or have changed; a checkpoint lacks a part; the tokenizers differ.
        Interrupted: Ctrl-C or SIGTERM; the folder then holds a checkpoint of the last finished step, or, of a run that
            is followed by another one, maybe the whole run.
        NonFiniteTraining: A loss or gradient is NaN or infinite; checkpoints of earlier steps are as they were.
        DiskFailed: A checkpoint, the metrics or the model cannot be written; earlier checkpoints are as they were.
    """
    # 1. Decide by the folder whether a run begins, continues or is finished.
    folder = RunFolder(Path(config.output_dir))
    with printing_survives(), ExitStack() as held:
        try:
            folder.check_name()
            check_one_group(config.world_size)
            if config.process_index == 0:
                folder.check_unlocked()
        except ValueError as error:
            raise UsageError(str(error)) from error
        going_on = folder.settings() is not None if resume == "auto" else resume
        longer = check_folder(folder, settings, going_on, config)
        if going_on and folder.is_finished(with_curves=plot) and not longer:
            if config.process_index == 0:
                print(f"{folder.path} is finished: its last step is trained and {folder.model} is saved")
            return folder
        checkpoint = folder.last_checkpoint() if going_on else None
        damaged = checkpoint is not None and state_fault(checkpoint / STATE) is not None  # refused when it is loaded
        steps = 0 if checkpoint is None or damaged else step_of(checkpoint)
        if longer and folder.is_finished():
            steps = max(steps, TrainerState.load_from_json(str(folder.model / "trainer_state.json")).global_step)
        if 0 < config.max_steps < steps:
            raise UsageError(f"{folder.path} has trained {steps} steps, more than max_steps {config.max_steps}")
        if steps and checkpoint is None:
            raise UsageError(
                f"{folder.path} has trained {steps} steps and has no checkpoint from which it could continue "
                f"(save_strategy {config.save_strategy.value}): begin a run in another folder"
            )
        # 2. Load everything; then lock the folder, and write what the run consists of.
        stop = StopOnSignal()
        try:
            with left_as_it_was(folder.path):
                trainer = _trainer(arguments, config, [MetricsFile(folder), ProgressDisplay(folder.path.name), stop])
            if carried is not None:
                trainer.compute.carry(carried)
            trainer.accelerator.wait_for_everyone()  # a slower process must still find the folder as it was
            if trainer.is_world_process_zero():
                held.enter_context(folder.locked())
                if not going_on and folder.config.exists():
                    raise UsageError(f"another process has begun a run in {folder.path} since this one looked")
                origin = _origin(folder, trainer, arguments, config)
                if longer:
                    folder.forget_finish()
                folder.write_settings(settings)  # from here on there is a run to resume
                folder.write_origin(origin)
        except (ValueError, OSError) as error:  # an OSError is transformers' "no such model"
            raise UsageError(first_line(error)) from error
        # 3. Train, from the checkpoint if there is one; save the model, the plot and the card of a run that ended.
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if not stop.stopped:
                if trainer.engines is not None:
                    trainer.engines.end()
                _save_model(trainer, folder, merged=arguments.lora_rank is not None)
            curves = plot and trainer.is_world_process_zero() and folder.metrics.exists() and _plot(folder)
            if curves and not stop.stopped:
                trainer.write_model_card(folder.model, folder.plot)
        except KeyboardInterrupt:
            stop.stopped = True
        except (IncompleteCheckpoint, VerifierFailed, UnsupportedModel) as error:
            raise UsageError(str(error)) from error
        except Exception as error:
            if not is_of_disk(error):
                raise
            raise DiskFailed(
                f"the run in {folder.path} cannot write: {first_line(error)}; {_continuation(folder)}"
            ) from error
    if stop.stopped:
        raise Interrupted(
            f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; {_continuation(folder)}"
        )
    if followed and stop.requested:
        raise Interrupted(f"stopped when {folder.path} was finished; the run after it begins")
    return folder


def _continuation(folder: RunFolder) -> str:
    saved = folder.last_checkpoint()
    return f"it continues from {saved.name if saved else 'the start'}"


def _origin(folder: RunFolder, trainer: TRBTrainer, arguments: RunArguments, config: TRBConfig) -> dict[str, Any]:
    """Returns the origin of the run as it is now. UsageError if the run began with another one."""
    now = origin_of(
        processes=config.world_size,
        rollouts=_rollouts_per_step(config),
        prompts=trainer.train_dataset,
        held_out=trainer.eval_dataset,
        student=model_path(arguments.model_name_or_path),
        teachers=[model_path(name) for name in config.teacher_names if name != SELF],
        served=trainer.served_teacher,
    )
    try:
        warning = check_origin(folder.origin(), now)
    except ValueError as error:
        raise UsageError(f"{folder.path} {error}") from error
    if warning:
        logger.warning(warning)
    return now


def _rollouts_per_step(config: TRBConfig) -> int:
    return int(config.train_batch_size * config.world_size * config.gradient_accumulation_steps)


def _save_model(trainer: TRBTrainer, folder: RunFolder, *, merged: bool) -> None:
    main = trainer.is_world_process_zero()
    if main:
        shutil.rmtree(folder.partial_model, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    if merged:
        save_merged(trainer, folder.partial_model)
    else:
        trainer.save_model(str(folder.partial_model))
    trainer.accelerator.wait_for_everyone()
    if main:
        trainer.write_model_card(folder.partial_model)
        trainer.state.save_to_json(str(folder.partial_model / "trainer_state.json"))
        folder.finish_model()
    trainer.accelerator.wait_for_everyone()  # a run after a warmup reads the model in every process


def _trainer(arguments: RunArguments, config: TRBConfig, callbacks: list[Any]) -> TRBTrainer:
    inputs = load_inputs(arguments, config)
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("vllm").setLevel(logging.WARNING)
    config.dataloader_pin_memory = torch.cuda.is_available()
    config.disable_tqdm = True  # ProgressDisplay takes its place
    if config.eval_verifier is not None or config.teacher_column is not None:
        config.remove_unused_columns = False
    transformers.utils.logging.disable_progress_bar()
    trainer = TRBTrainer(
        model=inputs.student,
        teacher_model=inputs.teacher,
        args=config,
        train_dataset=inputs.prompts,
        eval_dataset=inputs.held_out,
        processing_class=inputs.tokenizer,
        callbacks=callbacks,
        peft_config=None if arguments.lora_rank is None else lora(arguments.lora_rank, config),
    )
    if arguments.lora_rank is not None:  # it is saved merged, with the configuration of its base
        adapted: Any = trainer.accelerator.unwrap_model(trainer.model)
        check_can_be_saved(adapted.get_base_model(), inputs.tokenizer)
    for unwanted in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(unwanted)
    served = isinstance(inputs.teacher, RemoteTeacher)
    teacher = inputs.teacher.model if served else name_of(config.teachers or config.teacher_model_name_or_path)
    trainer.made_from = Provenance(arguments.model_name_or_path, teacher, arguments.prompts)
    return trainer


def check_folder(folder: RunFolder, settings: dict[str, Any], resume: bool, config: TRBConfig) -> bool:
    """Checks that a run may begin in a folder, or that its run may continue.

    Args:
        folder: The folder of the run.
        settings: The explicit settings by name.
        resume: Whether the run in the folder shall continue.
        config: All fields.

    Returns:
        Whether the run that continues gets another length.

    Raises:
        UsageError: The folder holds something else, no run to continue, or a run of other settings.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise UsageError(f"output_dir {folder.path} must be a folder, got a file")
    folder.check_kinds()
    if not resume:
        if not folder.is_empty():
            raise UsageError(f"output_dir {folder.path} is not empty: resume its run with --resume, or name another")
        return False
    before = folder.settings()
    if before is None:
        raise UsageError(f"nothing to resume: {folder.config} does not exist")
    origin = folder.origin()
    folder.read_metrics()  # a damaged file ends the run here, and not when its first metrics are written
    changed = changes(before, settings)
    try:
        if origin.get("processes", config.world_size) != config.world_size:
            check_step_size(origin, config.world_size, _rollouts_per_step(config))
        check_changes(changed, config, other_processes=origin.get("processes", config.world_size) != config.world_size)
    except ValueError as error:
        raise UsageError(f"{folder.path} {error}") from error
    return bool(LENGTH & changed.keys())


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def _plot(folder: RunFolder) -> bool:
    """Returns whether there were curves, and they could be plotted."""
    lines = folder.read_metrics()
    if not has_curves(lines):
        return False
    try:
        from .plots import plot_runs

        plot_runs([(folder.path.name, lines)], folder.plot)
    except Exception as error:  # no matplotlib, no space, no font cache: the run is done all the same
        logger.warning("%s could not be made, which `trb plot` may do later: %s", folder.plot, error)
        return False
    return True


def print_summary(folder: RunFolder) -> None:
    """Prints the first and the last value of the metrics that a run is judged by."""
    lines = folder.read_metrics()
    table = Table(title=escape(str(folder.path)))
    for heading in ("", "first", "last"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in first_and_last(lines):
        table.add_row(*row)
    Console().print(table)
