"""`trb train`: a YAML file and command-line fields become a `TRBTrainer` that runs in a folder and can be resumed."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import HfArgumentParser, PrinterCallback, ProgressCallback
from trl import DistillationConfig

from .callbacks import MetricsFile, ProgressDisplay, StopOnSignal
from .config import TRBConfig
from .errors import UsageError
from .field_checks import check_ranges
from .field_values import joined_numbers, words_of
from .model_card import Provenance
from .run_folder import RunFolder, left_as_it_was
from .run_inputs import load_inputs
from .run_summary import first_and_last
from .trainer import TRBTrainer
from .yaml_file import read_yaml

# Fields that may change between a run and its continuation without changing what is computed.
FREE_ON_RESUME = {"output_dir", "save_steps", "save_total_limit", "save_strategy", "report_to"}


class Interrupted(Exception):
    """The run was stopped by a signal and can be resumed."""


@dataclass
class RunArguments:
    """The models and the prompts of a run; every field of `TRBConfig` may stand beside these."""

    model_name_or_path: str = field(
        default="", metadata={"help": "The student: a folder, a model of the Hub, or demo:student."}
    )
    prompts: str = field(
        default="",
        metadata={"help": "Training prompts: demo, a .jsonl, .json, .parquet or .csv file, or a dataset of the Hub."},
    )
    eval_prompts: str | None = field(
        default=None, metadata={"help": "Held-out prompts for evaluation, as prompts; demo:eval for the built-in task."}
    )
    prompts_split: str = field(default="train", metadata={"help": "Split of a Hub dataset of training prompts."})
    eval_prompts_split: str = field(default="test", metadata={"help": "Split of a Hub dataset of held-out prompts."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column that holds the prompt, text or messages."})
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message that turns plain-text prompts into conversations."}
    )
    prompts_limit: int | None = field(default=None, metadata={"help": "Use the first so many training prompts."})
    eval_prompts_limit: int | None = field(default=None, metadata={"help": "Use the first so many held-out prompts."})
    prompts_where: str | None = field(
        default=None, metadata={"help": "Training prompts whose row has a value, as column=value, e.g. domain=math."}
    )
    prompts_unique: bool = field(
        default=False, metadata={"help": "Use each training prompt once, however often it comes."}
    )
    prompts_shuffle_seed: int | None = field(
        default=None, metadata={"help": "Shuffle the training prompts before prompts_limit takes the first of them."}
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Leave out training prompts of more tokens, chat template included."}
    )

    def __post_init__(self) -> None:
        check_ranges(self)


def parse_run(config: Path | None, overrides: Sequence[str]) -> tuple[RunArguments, TRBConfig, dict[str, Any]]:
    """The run of a YAML file with `--field value` overrides, and its explicit settings by name.

    Raises UsageError: no such file, a field that does not exist, a value that does not fit.
    """
    settings = read_yaml(config) if config else {}
    if "output_dir" not in settings:
        settings["output_dir"] = f"runs/{config.stem if config else 'trb'}"
    return parse_settings(settings, overrides)


def parse_settings(
    settings: dict[str, Any], overrides: Sequence[str] = ()
) -> tuple[RunArguments, TRBConfig, dict[str, Any]]:
    """As `parse_run`, of fields that were read already; output_dir must be among them."""
    kinds: Any = (RunArguments, TRBConfig)  # transformers' annotation does not admit two different dataclasses
    parser = HfArgumentParser(kinds, prog="trb train", add_help=False)
    known = {action.dest for action in parser._actions}
    named = [word.removeprefix("--").split("=")[0] for word in overrides if word.startswith("--")]
    for name in [*settings, *named]:
        if not isinstance(name, str):
            raise UsageError(f"names of fields must be text, got {name!r}: quote it")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise UsageError(f"unknown field {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))

    def fail(message: str) -> NoReturn:
        raise UsageError(message)

    parser.error = fail  # type: ignore[method-assign]  # argparse would print three hundred options first
    try:
        # The file's values go through the same conversions as the command line's, which come later and win.
        hints = {name: kind for each in kinds for name, kind in get_type_hints(each).items()}
        words = [*words_of(settings, hints, parser), *joined_numbers(overrides)]
        arguments, trb_config, unused = parser.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
    except json.JSONDecodeError as error:
        raise UsageError(f"a mapping on the command line is written as JSON, got {error.doc!r}: {error}") from error
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(str(error)) from error
    if unused:
        raise UsageError(f"unrecognized arguments: {' '.join(unused)}")
    if not arguments.model_name_or_path:
        raise UsageError("model_name_or_path (the student) is not set")
    if not trb_config.teacher_model_name_or_path:
        raise UsageError("teacher_model_name_or_path is not set")
    if not arguments.prompts:
        raise UsageError("prompts is not set")
    resolved = {**dataclasses.asdict(arguments), **trb_config.to_dict()}
    return arguments, trb_config, {name: resolved[name] for name in sorted({*settings, *named})}


def print_fields() -> None:
    """Every field of `trb train` with its default and help, the project's own first."""
    trls = {f.name for f in dataclasses.fields(DistillationConfig)} - set(TRBConfig.__annotations__)
    own = {f.name for kind in (RunArguments, TRBConfig) for f in dataclasses.fields(kind)} - trls
    shown = [f for kind in (RunArguments, TRBConfig) for f in dataclasses.fields(kind)]
    for field_ in sorted(shown, key=lambda f: f.name not in own):  # stable: otherwise the order of definition
        default = "" if field_.default is dataclasses.MISSING else field_.default
        print(f"--{field_.name} (default: {default!r})\n    {' '.join(str(field_.metadata.get('help', '')).split())}")


def train_run(
    arguments: RunArguments, config: TRBConfig, settings: dict[str, Any], *, resume: bool = False, plot: bool = True
) -> RunFolder:
    """Train in `config.output_dir`, from its last checkpoint if `resume`, and return the folder. `plot`: draw plot.png.

    Raises UsageError: the folder is not empty or not of these settings, a model or prompts cannot be loaded, the
    tokenizers differ. Interrupted: Ctrl-C or SIGTERM; the folder then holds a checkpoint of the last finished step.
    """
    folder = RunFolder(Path(config.output_dir))
    check_folder(folder, settings, resume)
    checkpoint = folder.last_checkpoint() if resume else None
    stop = StopOnSignal()
    label = folder.path.name
    try:
        with left_as_it_was(folder.path):
            trainer = _trainer(arguments, config, [MetricsFile(folder), ProgressDisplay(label), stop])
    except (ValueError, OSError) as error:  # an OSError is transformers' "no such model"
        raise UsageError(_first_line(error)) from error
    trainer.accelerator.wait_for_everyone()  # a slower process must still find the folder as it was
    if trainer.is_world_process_zero():
        folder.write_settings(settings)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except KeyboardInterrupt:
        stop.stopped = True
    if plot and trainer.is_world_process_zero() and folder.metrics.exists():
        _plot(folder)
    if stop.stopped:
        saved = folder.last_checkpoint()
        raise Interrupted(
            f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; it goes on from "
            + (saved.name if saved else "the start")
        )
    trainer.save_model(str(folder.model))
    trainer.write_model_card(folder.model, folder.plot if folder.plot.exists() else None)
    return folder


def _trainer(arguments: RunArguments, config: TRBConfig, callbacks: list[Any]) -> TRBTrainer:
    inputs = load_inputs(arguments, config)
    transformers.utils.logging.set_verbosity_error()
    config.dataloader_pin_memory = torch.cuda.is_available()
    config.disable_tqdm = True  # ProgressDisplay takes its place
    if config.eval_verifier is not None:
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
    )
    for unwanted in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(unwanted)
    trainer.made_from = Provenance(
        arguments.model_name_or_path, str(config.teacher_model_name_or_path), arguments.prompts
    )
    return trainer


def check_folder(folder: RunFolder, settings: dict[str, Any], resume: bool) -> None:
    """UsageError unless a new run may start in the folder or, with `resume`, its run has these settings."""
    if folder.path.exists() and not folder.path.is_dir():
        raise UsageError(f"output_dir {folder.path} must be a folder, got a file")
    if not resume:
        if not folder.is_empty():
            raise UsageError(f"output_dir {folder.path} is not empty: resume its run with --resume, or name another")
        return
    before = folder.settings()
    if before is None:
        raise UsageError(f"nothing to resume: {folder.config} does not exist")
    changed = sorted(
        name
        for name in {*before, *settings} - FREE_ON_RESUME
        if before.get(name, "unset") != settings.get(name, "unset")
    )
    if changed:
        details = ", ".join(f"{n}: {before.get(n, 'unset')} -> {settings.get(n, 'unset')}" for n in changed)
        raise UsageError(f"{folder.path} was started with other settings ({details}); a resumed run repeats its own")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def _plot(folder: RunFolder) -> None:
    from .report import plot_runs

    lines = folder.read_metrics()
    if any("trb/reverse_kl" in line for line in lines):
        plot_runs([(folder.path.name, lines)], folder.plot)


def print_summary(folder: RunFolder) -> None:
    """The first and the last value of what a run is judged by."""
    lines = folder.read_metrics()
    table = Table(title=f"{folder.path}")
    for heading in ("", "first", "last"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in first_and_last(lines):
        table.add_row(*row)
    Console().print(table)
