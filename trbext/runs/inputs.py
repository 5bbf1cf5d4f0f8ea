"""Loads and checks what a run reads before it starts: tokenizer, model configurations, prompts, verifier, policy.

Whatever can be known to fail fails here, before a model is loaded and before a folder is made.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ..data.demo_models import model_path
from ..data.encoding import encode_prompts
from ..data.prompt_checks import check_encodings
from ..data.prompt_order import prompts_of_a_step
from ..data.prompts import BUILT_IN, load_prompts
from ..errors import UsageError
from ..evaluation.verifiers import check_verifier, verifier_by_name
from ..models.adapters import base_of, check_no_adapter, tokenizer_path
from ..models.loading import check_model_folder, check_weights, load_tokenizer, named_errors
from ..models.model_kind import check_rotary
from ..models.positions import position_limit
from ..teachers.remote.teacher import RemoteTeacher
from ..training.config import TRBConfig
from ..training.engine.build import check_server
from ..training.fields.checks import check_best_metric
from ..training.fields.engine import engine_draft_length
from ..training.fields.teacher import SELF
from ..vllm.engine import slack

if TYPE_CHECKING:
    from .settings import RunArguments


@dataclass(frozen=True)
class RunInputs:
    """The checked inputs of a run."""

    student: str  # a folder, or a name on the Hub
    teacher: Any  # likewise, or several by their labels, or on a server; "self" is the base model under the student
    tokenizer: PreTrainedTokenizerBase
    prompts: Dataset
    held_out: Dataset | None


def load_inputs(arguments: RunArguments, config: TRBConfig) -> RunInputs:
    """Reads and checks the inputs of a run.

    Args:
        arguments: Models and prompts.
        config: All other fields.

    Returns:
        The inputs.

    Raises:
        UsageError: An input is missing or does not fit.
        ValueError: As UsageError.
        OSError: An input cannot be read.
    """
    # 1. Check what is only named, in milliseconds, before anything is read.
    name = "model_name_or_path"
    student = _known_model("student", name, arguments.model_name_or_path, adapter=config.teaches_itself)
    field = "teacher_model_name_or_path" if config.teachers is None else "teachers"
    teachers = [
        name if name == SELF else _known_model("teacher", field, name) for name in map(str, config.teacher_names)
    ]
    config.policy(total_steps=0)
    check_best_metric(config)
    verifier = None if config.eval_verifier is None else verifier_by_name(config.eval_verifier)
    # 2. Load the prompts, and check them and their number.
    options, loading = config.model_init_kwargs or {}, _loading(config)
    tokenizer = load_tokenizer(tokenizer_path(student), "student", **loading)
    prompts, held_out = training_prompts(arguments, config, tokenizer), held_out_prompts(arguments)
    rollouts = config.train_batch_size * config.world_size * config.gradient_accumulation_steps
    prompts_of_a_step(rollouts, config.rollouts_per_prompt, len(prompts))
    if held_out is None and (config.eval_strategy != "no" or config.eval_on_start):
        raise UsageError(f"eval_strategy {config.eval_strategy.value} needs eval_prompts, the held-out prompts")
    # 3. Check the models by their configurations and the names of their weights.
    models = [("student", _check_model("student", base_of(student) or student, loading | options))]
    loading["revision"] = config.revision_of_teacher or "main"
    for path in teachers:
        if path != SELF:
            models.append(
                ("teacher", _check_model("teacher", path, loading | (config.teacher_model_init_kwargs or {})))
            )
    sizes = (getattr(model.get_text_config(), "vocab_size", None) for _, model in models)
    width = min((size for size in sizes if size is not None), default=math.inf)
    config.check_top_k(width)
    config.read_tokenizer(tokenizer, int(min(width, len(tokenizer))))
    positions: dict[str, int | None] = {}
    for role, model in models:
        limits = [limit for limit in (positions.get(role), position_limit(model)) if limit is not None]
        positions[role] = min(limits, default=None)
    # 4. Check what depends on several inputs.
    template, length = config.chat_template_kwargs or {}, config.max_completion_length
    assert length is not None
    longest = 0
    read = models[:1] if config.teacher_from_engine else models  # by the loss
    given = (
        (prompts, arguments.prompts, config.per_device_train_batch_size),
        (held_out, arguments.eval_prompts, config.per_device_eval_batch_size),
    )
    for rows, source, size in given:
        if rows is not None:
            encoded = check_encodings(rows, str(source), tokenizer, template, length, positions)
            _check_ids(str(source), encoded, models, tokenizer)
            lengths = [len(ids) for ids in encoded]
            if config.use_vllm:
                _check_engine_prompts(config, lengths, length, positions)
            for role, model in read:
                _check_rotary(f"{role} of type {model.model_type}", model, lengths, length, size)
            longest = max(longest, max(lengths) + length)
    if config.use_vllm and config.vllm_mode == "server" and config.process_index == 0:
        check_server(config, teachers[0], longest)
    if held_out is not None and verifier is not None:
        check_verifier(verifier, held_out, str(config.eval_verifier))
    teacher: Any = teachers[0] if teachers else _served(config, tokenizer, longest)
    if isinstance(config.teachers, dict):
        teacher = dict(zip(config.teachers, teachers, strict=True))
    return RunInputs(student, teacher, tokenizer, prompts, held_out)


def _check_ids(source: str, encoded: list[list[int]], models: list[tuple[str, Any]], tokenizer: Any) -> None:
    """Checks that every model embeds every id of the prompts. A token may have been added without a resize.

    Raises:
        UsageError: A model does not.
    """
    for role, model in models:
        size = getattr(model.get_text_config(), "vocab_size", None)
        for number, ids in enumerate(encoded, 1):
            if size is not None and max(ids) >= size:
                raise UsageError(
                    f"prompts {source!r}: every id must be one of the {size} that the {role} embeds, got {max(ids)} "
                    f"({tokenizer.convert_ids_to_tokens(max(ids))!r}) in row {number}: resize its embeddings"
                )


def _check_rotary(name: str, model: Any, lengths: list[int], completion: int, size: int) -> None:
    """Checks that no row is scored with the rotary factors of another one.

    Args:
        name: What an error calls the model.
        model: Its configuration.
        lengths: Of the prompts, tokens.
        completion: Tokens of the longest completion.
        size: Rows of a micro-batch, in which any of them may be together.

    Raises:
        UsageError: One may be.
    """
    each = [(length, length) for length in sorted(set(lengths))]
    for shortest, longest in each if size == 1 else [(min(lengths), max(lengths))]:
        try:
            check_rotary(model, name, shortest, longest + completion)
        except ValueError as error:
            prompts = f"a prompt of {longest}" if shortest == longest else f"prompts of {shortest} to {longest}"
            raise UsageError(f"max_completion_length {completion} for {prompts} tokens: {error}") from error


def _check_engine_prompts(
    config: TRBConfig, lengths: list[int], completion: int, positions: Mapping[str, int | None]
) -> None:
    """Checks what an engine would refuse when a prompt's turn comes. `check_server` asks a server for its limit."""
    server, kept = config.vllm_mode == "server", config.vllm_after_warmup == "keep" or config.teacher_from_engine
    blended = not config.student_writes or server or kept  # else the student's own engine draws, and holds nothing out
    if blended and min(lengths) < 2:
        raise UsageError(f"use_vllm holds out the last token of a prompt, which must have two, got {min(lengths)}")
    if server:
        return
    limit, needed = config.vllm_max_model_length, max(lengths) + completion
    room = slack(engine_draft_length(config)) if blended else 0
    for role, most in positions.items():
        if most is None or (limit or needed) + room <= most or not (blended or role == "student"):
            continue
        given = f"vllm_max_model_length {limit}"
        if limit is None:
            given = f"a prompt of {max(lengths)} tokens and max_completion_length {completion}"
        raise UsageError(
            f"{given} must be within {most - room} tokens: the {role} has {most} positions, of which the engine keeps "
            f"{room} past the last token"
        )
    if limit is not None and needed > limit:
        raise UsageError(
            f"vllm_max_model_length must be at least {needed}, for a prompt of {max(lengths)} tokens and "
            f"max_completion_length {completion}, got {limit}"
        )


def _served(config: TRBConfig, tokenizer: PreTrainedTokenizerBase, longest: int) -> RemoteTeacher:
    """Returns the teacher on a server, which must take rows of `longest` tokens: whole completions are scored."""
    assert config.teacher_url is not None
    name = config.teacher_model_name_or_path
    teacher = RemoteTeacher(config.teacher_url, model=name, top_k=config.teacher_top_k, tokenizer=tokenizer)
    teacher.check_length(longest - (config.loss_tokens_of == "student"))  # then only prefixes are asked for
    return teacher


def training_prompts(arguments: RunArguments, config: TRBConfig, tokenizer: Any) -> Dataset:
    """Returns the prompts that a run trains on.

    Raises:
        PromptsNotFound: As `load_prompts`.
    """
    template, longest = config.chat_template_kwargs or {}, arguments.max_prompt_length

    def fits(texts: list[Any]) -> list[bool]:
        return [len(ids) <= (longest or 0) for ids in encode_prompts(tokenizer, texts, **template)]

    return load_prompts(
        arguments.prompts,
        split=arguments.prompts_split,
        column=arguments.prompt_column,
        system_prompt=arguments.system_prompt,
        where=arguments.prompts_where,
        unique=arguments.prompts_unique,
        shuffle_seed=arguments.prompts_shuffle_seed,
        fits=None if longest is None else fits,
        limit=arguments.prompts_limit,
        demo_seed=config.seed,
    )


def held_out_prompts(arguments: RunArguments) -> Dataset | None:
    """Returns the prompts on which a run is evaluated, if it has any.

    Raises:
        PromptsNotFound: As `load_prompts`.
    """
    if arguments.eval_prompts is None:
        return None
    # The column is that of the training prompts. The built-in ones have their own.
    column = "prompt" if arguments.eval_prompts in BUILT_IN else arguments.prompt_column
    return load_prompts(
        arguments.eval_prompts,
        split=arguments.eval_prompts_split,
        column=column,
        system_prompt=arguments.system_prompt,
        limit=arguments.eval_prompts_limit,
    )


def sample_prompts(arguments: RunArguments, config: TRBConfig, limit: int) -> Dataset:
    """Returns the first `limit` held-out prompts of a run, or of those that it trains on if it has none held out.

    Raises:
        PromptsNotFound: As `load_prompts`.
        OSError, ValueError: The student's tokenizer, by which prompts that are too long are left out, cannot be loaded.
    """
    own = arguments.prompts_limit
    least = limit if own is None else min(limit, own)
    limited = dataclasses.replace(arguments, prompts_limit=least, eval_prompts_limit=limit)
    held_out = held_out_prompts(limited)
    if held_out is not None:
        return held_out
    path = tokenizer_path(model_path(arguments.model_name_or_path))
    return training_prompts(limited, config, load_tokenizer(path, "student", **_loading(config)))


def _loading(config: TRBConfig) -> dict[str, Any]:
    """Returns how the student's tokenizer and configuration are loaded."""
    revision = (config.model_init_kwargs or {}).get("revision", "main")
    return {"trust_remote_code": config.trust_remote_code, "revision": revision}


def _known_model(role: str, name: str, value: str, *, adapter: bool = False) -> str:
    path = model_path(value)
    check_model_folder(path, name)
    if not adapter:
        check_no_adapter(path, role)
    elif base_of(path) is None:
        raise UsageError(
            f"the teacher 'self' is the base model under a student that is an adapter, and {name} {path} is none"
        )
    elif importlib.util.find_spec("peft") is None:
        raise UsageError(f"the student {path} is an adapter and needs peft, which is not installed: pip install peft")
    return path


def _check_model(role: str, path: str, loading: dict[str, Any]) -> PreTrainedConfig:
    """Returns the configuration of the model at `path`; ValueError if there is none, or its weights are incomplete."""
    with named_errors(path, role):
        named = {name: value for name, value in loading.items() if name not in ("dtype", "device_map")}
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, **named)
    check_weights(path, role, config, **loading)
    return config
