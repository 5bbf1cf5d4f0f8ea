"""Checks the values of fields that TRL and transformers define and do not check, before anything is loaded.

With a value out of range a run would train nothing, one step too many or NaN, or fail only at its first optimizer step.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.checkpoint
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.utils.import_utils import is_torch_bf16_gpu_available

from ...limits import LARGEST_TEMPERATURE, LEAST_TEMPERATURE


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


class _Range(NamedTuple):
    words: str
    holds: Callable[[Any], bool]


_COUNT = _Range("a whole number of at least 1", lambda value: _is_whole(value) and value >= 1)
_WHOLE = _Range("a whole number of at least 0", lambda value: _is_whole(value) and value >= 0)
_AT_LEAST_0 = _Range("a number >= 0, and finite", lambda value: 0 <= value < math.inf)
_ABOVE_0 = _Range("a number > 0, and finite", lambda value: 0 < value < math.inf)
_SHARE = _Range("a number with 0 <= x < 1", lambda value: 0 <= value < 1)
_SEED = _Range("a whole number with 0 <= x < 2^32", lambda value: _is_whole(value) and 0 <= value < 2**32)

_RANGES: dict[str, _Range] = {
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "max_steps": _Range(
        "a whole number of at least 1, or -1 for num_train_epochs",
        lambda value: _is_whole(value) and (value >= 1 or value == -1),
    ),
    "num_train_epochs": _ABOVE_0,
    "learning_rate": _AT_LEAST_0,
    "weight_decay": _AT_LEAST_0,
    "max_grad_norm": _Range("a number >= 0", lambda value: value >= 0),
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": _AT_LEAST_0,
    "warmup_steps": _AT_LEAST_0,
    "logging_steps": _ABOVE_0,
    "save_steps": _ABOVE_0,
    "eval_steps": _AT_LEAST_0,  # 0 is logging_steps
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": _Range(
        "a whole number from 0 to 1024", lambda value: _is_whole(value) and 0 <= value <= 1024
    ),
    "temperature": _Range("a number from 1e-6 to 1e6", lambda v: LEAST_TEMPERATURE <= v <= LARGEST_TEMPERATURE),
    "top_p": _Range("a share with 0 < top_p <= 1", lambda value: 0 < value <= 1),
    "top_k": _WHOLE,
    "min_p": _Range("a share with 0 <= min_p <= 1", lambda value: 0 <= value <= 1),
    "repetition_penalty": _ABOVE_0,
    "beta": _Range("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "neftune_noise_alpha": _AT_LEAST_0,
    # of the rollouts and the loss
    "max_completion_length": _COUNT,
    "rollouts_per_prompt": _COUNT,
    "rollout_batch_size": _COUNT,
    "rollout_length_start": _COUNT,
    "rollout_length_window": _COUNT,
    "loss_prefix_tokens": _COUNT,
    "loss_top_k": _COUNT,
    "skd_top_k": _COUNT,
    "relay_top_k": _COUNT,
    "relay_legs": _COUNT,
    "relay_leg_length": _WHOLE,
    "switching_turn_tokens": _COUNT,
    "teacher_top_k": _COUNT,
    "eval_samples": _COUNT,
    # of a run's prompts
    "prompts_limit": _COUNT,
    "eval_prompts_limit": _COUNT,
    "max_prompt_length": _COUNT,
    "prompts_shuffle_seed": _SEED,
    # of a run's adapter
    "lora_rank": _COUNT,
    "lora_sft_steps": _COUNT,
    "lora_learning_rate": _ABOVE_0,
}


_MAPPINGS = (
    *("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "model_init_kwargs"),
    *("teacher_model_init_kwargs", "generation_kwargs", "chat_template_kwargs"),
)
_MAPPINGS_OR_FILES = ("accelerator_config", "fsdp_config")

# What an evaluation returns, after its prefix; `eval_pass@1` and its like need a verifier. TRL adds the rest, such as
# eval_entropy, only when it logs, which is too late to choose a checkpoint by it.
_EVALUATED = ("loss", "runtime", "samples_per_second", "steps_per_second")
_VERIFIED = ("pass@1", "pass@1_runtime", "pass@1_tokens_per_second", "verifier_errors")

# What TRL itself passes to the tokenizer's apply_chat_template: Python refuses it twice, but only at the first step.
_OF_THE_TRAINER = {"conversation", "tools", "add_generation_prompt", "tokenize", "return_dict"}


def check_ranges(fields: Any) -> None:
    """Checks the fields of the dataclass `fields`; None is left to its default.

    Numbers of numpy become those of Python, which can be saved, in all fields.

    Raises:
        ValueError: A field is out of its range.
    """
    for name, value in list(vars(fields).items()):
        if isinstance(value, np.generic):
            setattr(fields, name, value.item())
    for name, range_ in _RANGES.items():
        value = getattr(fields, name, None)
        if value is not None and not (isinstance(value, Real) and range_.holds(value)):
            raise ValueError(f"{name} must be {range_.words}, got {value!r}")
    if getattr(fields, "dataloader_persistent_workers", False) and not fields.dataloader_num_workers:
        raise ValueError("dataloader_persistent_workers needs dataloader_num_workers of at least 1, got 0")


def check_mappings(config: Any) -> None:
    """Checks that the fields of a `TRBConfig` that are mappings are, or JSON of one, which transformers reads.

    Raises:
        ValueError: One is something else, or names a file that does not hold one.
    """
    for name in _MAPPINGS:
        value = getattr(config, name, None)
        if not (value is None or isinstance(value, dict) or _is_json_object(value)):
            raise ValueError(f"{name} must be a mapping, got {value!r:.80}")
    for name in _MAPPINGS_OR_FILES:
        value = getattr(config, name, None)
        if isinstance(value, str) and not _is_json_object(value) and not _holds_mapping(Path(value)):
            raise ValueError(f"{name} must be a mapping or a JSON file that holds one, got {value!r:.80}")


def _is_json_object(value: object) -> bool:
    return isinstance(value, str) and value.startswith("{")


def _holds_mapping(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def check_template_options(options: Any) -> None:
    """Checks the options of the chat template, `chat_template_kwargs`.

    Raises:
        ValueError: One is no option, but set by the tokenizer or the trainer.
    """
    for name in options or ():
        if not isinstance(name, str):
            raise ValueError(f"chat_template_kwargs must have names that are text, got {name!r}")
        if name == "chat_template":
            raise ValueError(
                "chat_template_kwargs must hold options of the tokenizer's template, got 'chat_template': save the "
                "tokenizer with this template instead"
            )
        if name in _OF_THE_TRAINER:
            raise ValueError(f"chat_template_kwargs must hold options of the template, got {name!r}, which is TRL's")


def check_best_metric(config: Any) -> None:
    """Checks that the evaluations of a `TRBConfig` will have its `metric_for_best_model`.

    Raises:
        ValueError: They will not.
    """
    name = config.metric_for_best_model
    if name is None or config.eval_strategy == "no":
        return
    known = _EVALUATED if config.eval_verifier is None else (*_EVALUATED, *_VERIFIED)
    stem = name.removeprefix("eval_")
    if stem in known:
        return
    if stem in _VERIFIED:
        raise ValueError(f"metric_for_best_model {name} needs eval_verifier, which judges the completions")
    listed = ", ".join(f"eval_{each}" for each in known)
    raise ValueError(f"metric_for_best_model must be one of {listed}, got {name!r}")


def check_reporters(report_to: str | Iterable[str]) -> None:
    """Checks the places to report to.

    Raises:
        ValueError: transformers does not know one, or it is not installed.
    """
    names = [report_to] if isinstance(report_to, str) else list(report_to)
    if names in (["none"], ["all"]):
        return
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(f"report_to must be none, all, or of {known}, got {name!r}")
        if name not in get_available_reporting_integrations():
            try:
                INTEGRATION_TO_CALLBACK[name]()
            except (ImportError, RuntimeError) as error:
                raise ValueError(f"report_to: {name} cannot be used here: {error}") from error


def check_optimization(config: Any) -> None:
    """Checks that the optimizer and the learning rate schedule of a `TRBConfig` can be made, and the checkpointing.

    Raises:
        ValueError: One cannot, or torch does not know an option of activation checkpointing.
    """
    _check_checkpointing(config.gradient_checkpointing_kwargs)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    steps = max(config.max_steps, 1)
    kwargs = {} if config.lr_scheduler_kwargs is None else config.lr_scheduler_kwargs
    if not isinstance(kwargs, dict):
        raise ValueError(f"lr_scheduler_kwargs must be a mapping, got {kwargs!r}")
    name = config.lr_scheduler_type.value
    try:
        get_scheduler(name, optimizer, config.get_warmup_steps(steps), steps, scheduler_specific_kwargs=dict(kwargs))
    except (TypeError, ValueError) as error:
        raise ValueError(f"lr_scheduler_kwargs {kwargs} do not fit lr_scheduler_type {name!r}: {error}") from error
    try:
        Trainer.get_optimizer_cls_and_kwargs(config)
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        asks_for_the_model = any(kind in config.optim.value for kind in ("galore", "apollo", "lomo"))
        if asks_for_the_model and not isinstance(error, ImportError):
            return
        raise ValueError(f"optim {config.optim.value!r} cannot be used here: {error}") from error


def _check_checkpointing(options: Any) -> None:
    """Checks the options of activation checkpointing, which torch would refuse at the first step."""
    parameters = inspect.signature(torch.utils.checkpoint.checkpoint).parameters.values()
    of_torch = {"preserve_rng_state", *(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)}
    known = sorted(of_torch | {"every_n_layers", "offload"})  # which transformers takes out
    for name in options or ():
        if name not in known:
            raise ValueError(f"gradient_checkpointing_kwargs must hold options of {', '.join(known)}, got {name!r}")


def device_has_bf16(*, use_cpu: bool) -> bool:
    """Whether this machine computes in bfloat16; the CPU and GPUs before Ampere only emulate it."""
    if use_cpu:
        return False
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(is_torch_bf16_gpu_available())
