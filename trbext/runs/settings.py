"""Reads a run of `trb train` from a YAML file and command-line fields."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from transformers import HfArgumentParser
from trl import DistillationConfig

from ..data.yaml_file import read_yaml
from ..errors import UsageError
from ..training.config import TRBConfig
from ..training.fields.checks import check_ranges
from .field_values import joined_numbers, words_of

# A field of transformers, which itself does nothing with it.
NOT_OF_A_RUN = ("resume_from_checkpoint",)


@dataclass
class RunArguments:
    """The models and the prompts of a run. A settings file holds these fields beside those of `TRBConfig`."""

    model_name_or_path: str = field(
        default="", metadata={"help": "The student: a folder, a model of the Hub, or demo:student."}
    )
    prompts: str = field(
        default="",
        metadata={
            "help": "Training prompts: demo, a .jsonl, .json, .parquet or .csv file, or a dataset of the Hub. Values "
            "of a .csv file are read as text."
        },
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

    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "Train a LoRA adapter of this rank on all linear layers, which model/ holds merged. Unset = all "
            "weights."
        },
    )
    lora_sft_steps: int | None = field(
        default=None,
        metadata={
            "help": "Simple-OPD: so many supervised optimizer steps of a LoRA adapter of lora_rank on the teacher's "
            "completions, before the run and beside its max_steps; then the adapter is merged, and the run trains all "
            "weights. Unset = none."
        },
    )
    lora_learning_rate: float | None = field(
        default=None,
        metadata={"help": "For lora_sft_steps: the learning rate of these steps. Unset = learning_rate."},
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.lora_sft_steps is not None and self.lora_rank is None:
            raise ValueError("lora_sft_steps trains a LoRA adapter: set lora_rank, or leave it out")
        if self.lora_learning_rate is not None and self.lora_sft_steps is None:
            raise ValueError("lora_learning_rate belongs to lora_sft_steps: set it, or leave lora_learning_rate out")


def parse_run(config: Path | None, overrides: Sequence[str]) -> tuple[RunArguments, TRBConfig, dict[str, Any]]:
    """Reads a run from a YAML file and command-line fields.

    Args:
        config: The file, if there is one.
        overrides: Words such as "--field", "value"; they replace values of the file.

    Returns:
        Models and prompts, all other fields, and the explicit settings by name.

    Raises:
        UsageError: There is no such file or field, or a value does not fit.
    """
    settings = read_yaml(config) if config else {}
    if "output_dir" not in settings:
        settings["output_dir"] = f"runs/{config.stem if config else 'trb'}"
    return parse_settings(settings, overrides)


def parse_settings(
    settings: dict[str, Any], overrides: Sequence[str] = ()
) -> tuple[RunArguments, TRBConfig, dict[str, Any]]:
    """Parses a run as `parse_run` does, from fields that were read already.

    Args:
        settings: Fields and values; output_dir must be among them.
        overrides: As of `parse_run`.

    Returns:
        As `parse_run`.

    Raises:
        UsageError: There is no such field, or a value does not fit.
    """
    kinds: Any = (RunArguments, TRBConfig)  # transformers' annotation does not admit two different dataclasses
    # 1. Refuse names that are no fields, before argparse lists all of them.
    parser = HfArgumentParser(kinds, prog="trb train", add_help=False)
    known = {action.dest for action in parser._actions}
    named = [word.removeprefix("--").split("=")[0] for word in overrides if word.startswith("--")]
    for name in [*settings, *named]:
        if not isinstance(name, str):
            raise UsageError(f"names of fields must be text, got {name!r}: quote it")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise UsageError(f"unknown field {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))

    # 2. Convert the values.
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
    # 3. Refuse what a run cannot begin with.
    if unused:
        raise UsageError(f"unrecognized arguments: {' '.join(unused)}")
    if trb_config.resume_from_checkpoint is not None:
        raise UsageError(
            "resume_from_checkpoint is no field of a run, which continues from its last checkpoint with --resume, got "
            f"{trb_config.resume_from_checkpoint!r}"
        )
    if not arguments.model_name_or_path:
        raise UsageError("model_name_or_path (the student) is not set")
    if not trb_config.teacher_names and trb_config.teacher_url is None:
        raise UsageError("teacher_model_name_or_path is not set")
    if not arguments.prompts:
        raise UsageError("prompts is not set")
    resolved = {**dataclasses.asdict(arguments), **trb_config.to_dict()}
    return arguments, trb_config, {name: resolved[name] for name in sorted({*settings, *named})}


def print_fields() -> None:
    """Prints every field of `trb train` with its default and help, the project's own fields first."""
    trls = {f.name for f in dataclasses.fields(DistillationConfig)} - set(TRBConfig.__annotations__)
    own = {f.name for kind in (RunArguments, TRBConfig) for f in dataclasses.fields(kind)} - trls
    shown = [f for kind in (RunArguments, TRBConfig) for f in dataclasses.fields(kind) if f.name not in NOT_OF_A_RUN]
    for field_ in sorted(shown, key=lambda f: f.name not in own):  # stable: otherwise the order of definition
        default = "" if field_.default is dataclasses.MISSING else field_.default
        print(f"--{field_.name} (default: {default!r})\n    {' '.join(str(field_.metadata.get('help', '')).split())}")
