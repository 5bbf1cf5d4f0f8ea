"""Loads a student that is given by a path, as TRL's trainer would, and checks what was loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import PartialState
from transformers import AutoProcessor, BitsAndBytesConfig, PreTrainedModel
from transformers import set_seed as seed_everything

from ..models.adapters import base_of, check_no_adapter, tokenizer_path, trainable
from ..models.loading import load_for_training
from ..models.positions import embedded_ids
from .config import TRBConfig


def load_student(path: str, args: TRBConfig, quantization: BitsAndBytesConfig | None) -> PreTrainedModel:
    """Loads the student.

    Args:
        path: A folder or a name on the Hub.
        args: Its `model_init_kwargs` are those of `from_pretrained`.
        quantization: Of the weights, or None.

    Raises:
        IncompleteWeights: As `load_for_training`.
        ValueError: `quantization` is given twice; the student is an adapter, and its base model is not the teacher.
    """
    kwargs: dict[str, Any] = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    if quantization is not None:
        if "quantization_config" in kwargs:
            raise ValueError("quantization_config is given as an argument and in model_init_kwargs: leave one out")
        kwargs["quantization_config"] = quantization
    if PartialState().num_processes > 1:
        kwargs["device_map"] = None  # "auto" would spread every process's copy over all devices
    seed_everything(args.seed)
    base = base_of(path) if args.teaches_itself else None
    if base is None:
        return load_for_training(path, "student", **kwargs)
    adapted: Any = trainable(load_for_training(base, "student", **kwargs), path)
    model: PreTrainedModel = adapted
    return model


def check_not_compiled(model: Any) -> None:
    """Checks that the weights of the student will be saved under their own names.

    Raises:
        ValueError: It is what torch.compile returned, whose names no loader knows.
    """
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            "model must be the model itself, got what torch.compile made of it, whose weights would be saved under "
            "names that nothing loads: set torch_compile=True instead"
        )


def check_trains(model: Any) -> None:
    """Checks that a weight of the student will be trained.

    Raises:
        ValueError: All are frozen.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"the student {type(model).__name__} must have a parameter that requires a gradient, got none: call "
            "requires_grad_(True) on what is to be trained"
        )


def check_pad_token(tokenizer: Any, models: Iterable[tuple[str, Any]]) -> None:
    """Checks that the models embed the padding token. One that was added to a tokenizer has an id of its own.

    Args:
        tokenizer: The student's.
        models: Names and models of transformers.

    Raises:
        ValueError: One does not.
    """
    for name, model in models:
        size = embedded_ids(model)
        if size is not None and tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= size:
            raise ValueError(
                f"pad_token_id must be one of the {size} ids that the {name} embeds, got {tokenizer.pad_token_id}: "
                "set the tokenizer's pad_token to a token that both models have, such as the EOS token"
            )


def check_can_be_saved(model: PreTrainedModel, tokenizer: Any) -> None:
    """Checks that the configurations of a student can be saved: transformers loads some that it refuses to save.

    Args:
        model: Whole, with the EOS ids that it will be saved with: an altered generation config is judged more strictly.
        tokenizer: Its special tokens replace those of the model when training begins.

    Raises:
        ValueError: One cannot be saved, and neither could the trained model.
    """
    for name in ("config", "generation_config"):
        held: Any = copy.deepcopy(getattr(model, name, None))
        if held is None:
            continue
        ids = held.get_text_config() if name == "config" else held
        for special in ("pad_token_id", "bos_token_id"):
            if getattr(tokenizer, special, None) is not None:
                setattr(ids, special, getattr(tokenizer, special))
        if name == "generation_config" and getattr(tokenizer, "eos_token_id", None) is not None:
            stops = held.eos_token_id if isinstance(held.eos_token_id, list) else [held.eos_token_id]
            if tokenizer.eos_token_id not in stops:
                held.eos_token_id = [tokenizer.eos_token_id, *(stop for stop in stops if stop is not None)]
        try:
            with TemporaryDirectory() as folder:
                held.save_pretrained(folder)
        except Exception as error:  # of the class that the configuration's own checks raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
            raise ValueError(
                f"the student's {name}.json must be one that transformers saves, or the trained model would be lost, "
                f"got {reason}"
            ) from error


def load_processing_class(path: str, args: TRBConfig) -> Any:
    """Returns the tokenizer or processor at `path`, of the revision that `args.model_init_kwargs` names.

    Raises:
        ValueError: `path` is that of an adapter.
    """
    if not args.teaches_itself:
        check_no_adapter(path, "student")
    return AutoProcessor.from_pretrained(
        tokenizer_path(path),
        revision=(args.model_init_kwargs or {}).get("revision"),
        truncation_side="left",
        padding_side="left",
        trust_remote_code=args.trust_remote_code,
    )


@contextmanager
def without_init_kwargs(args: TRBConfig) -> Iterator[None]:
    """Hides `model_init_kwargs`, which have been used, from TRL, which would warn that they are ignored."""
    kwargs, args.model_init_kwargs = args.model_init_kwargs, None
    try:
        yield
    finally:
        args.model_init_kwargs = kwargs
