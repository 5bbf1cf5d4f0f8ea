"""Checks the arguments of a rollout: the KL budget, the prompts, and what the models declare."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from ..limits import is_epsilon, not_an_epsilon
from ..models.cached_model import unwrap
from ..models.model_kind import UnsupportedModel, check_kind, check_rotary, check_whole
from ..models.next_token import is_transformers
from ..models.positions import embedded_ids, position_limit
from ..teachers.self_teacher import SelfTeacher


def check_epsilon(epsilon: float | Tensor, input_ids: Tensor) -> None:
    """Checks the KL budget of a rollout, in nats.

    Args:
        epsilon: One budget for all prompts, or [B] of any float dtype.
        input_ids: [B, P], the prompts.

    Raises:
        ValueError: A budget is negative or NaN, or their number is not that of the prompts.
    """
    if not isinstance(epsilon, Tensor):
        if not isinstance(epsilon, Real):
            raise ValueError(f"epsilon must be a float or a tensor [B] of KL budgets in nats, got {epsilon!r:.80}")
        if not is_epsilon(epsilon):
            raise ValueError(not_an_epsilon(epsilon))
        return
    if epsilon.shape != input_ids.shape[:1]:
        raise ValueError(
            f"epsilon must be a float or one budget per prompt, [{len(input_ids)}], got shape {list(epsilon.shape)}"
        )
    wrong = (~(epsilon >= 0)).nonzero()[:, 0].tolist()
    if wrong:
        raise ValueError(not_an_epsilon(f"{float(epsilon[wrong[0]])} in row {wrong[0]}"))


def check_token_ids(input_ids: Any, attention_mask: Any) -> None:
    """Checks that the prompts and their mask are tensors, the prompts of whole numbers.

    Raises:
        ValueError: One is not.
    """
    for name, given in (("input_ids", input_ids), ("attention_mask", attention_mask)):
        if not isinstance(given, Tensor):
            raise ValueError(f"{name} must be a tensor [B, P], got {type(given).__name__}")
    if input_ids.dtype == torch.bool or input_ids.is_floating_point() or input_ids.is_complex():
        raise ValueError(f"input_ids must be token ids, [B, P] int64, got {input_ids.dtype}")


def check_prompts(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Checks the prompts, and cuts off the columns that are padding in every row.

    Args:
        input_ids: [B, P] token ids, left padded.
        attention_mask: [B, P], 1 or True for tokens, 0 or False for padding.

    Returns:
        The prompts [B, longest] int64, their mask [B, longest] int64, and their lengths [B] int64 on the CPU.

    Raises:
        ValueError: The shapes differ or hold a 0, or a row is not left padded or is empty.
    """
    if input_ids.dim() != 2 or 0 in input_ids.shape or attention_mask.shape != input_ids.shape:
        raise ValueError(
            "input_ids and attention_mask must have one shape [B, P] with B, P >= 1, got "
            f"{list(input_ids.shape)} and {list(attention_mask.shape)}"
        )
    host = attention_mask.cpu()
    lengths = (host != 0).sum(1)
    left_padded = (host == (torch.arange(host.shape[1]) >= host.shape[1] - lengths[:, None])).all(1) & (lengths > 0)
    if not left_padded.all():
        row = int(left_padded.int().argmin())
        raise ValueError(
            f"attention_mask must be left padded, zeros and then at least one 1 in every row; row {row} is not"
        )
    longest = int(lengths.max())
    mask = attention_mask[:, -longest:].to(input_ids.device, torch.int64)
    return input_ids[:, -longest:].long(), mask, lengths


def check_ids(models: list[tuple[str, Any]], input_ids: Tensor) -> None:
    """Checks that the models can embed every id of the prompts, padding as well.

    A tokenizer to which a padding token was added has an id more than a model that was not resized.

    Args:
        models: Names and models. Those that are not from transformers are not asked.
        input_ids: [B, P].

    Raises:
        ValueError: A model has no such id.
    """
    least, most = torch.stack(torch.aminmax(input_ids)).tolist()
    for name, model in models:
        size = embedded_ids(model) if is_transformers(model) else None
        if size is not None and not 0 <= least <= most < size:
            got = least if least < 0 else most
            raise ValueError(f"input_ids must be of the {size} ids that the {name} embeds, padding too, got {got}")


def check_not_itself(models: list[tuple[str, Any]]) -> None:
    """Checks that no teacher is the student under its adapter, as `PeftModel.get_base_model()` is: nothing would blend.

    Args:
        models: Names and models, the student first.

    Raises:
        UnsupportedModel: One is. A `self_teacher` runs without the adapter.
    """
    if not is_transformers(models[0][1]):
        return
    student = unwrap(models[0][1])
    for name, model in models[1:]:
        if isinstance(model, SelfTeacher) or not is_transformers(model) or unwrap(model) is not student:
            continue
        if any(isinstance(getattr(part, "_disable_adapters", None), bool) for part in student.modules()):
            raise UnsupportedModel(
                f"the {name} {type(student).__name__} is the student itself, adapter included: give "
                "trbext.self_teacher(student), its base model"
            )


def check_models(models: list[tuple[str, Any]], lengths: Tensor, max_new_tokens: int) -> None:
    """Checks by what the models declare that they can decode `max_new_tokens` after prompts of these lengths.

    Args:
        models: Names and models: the student, and the teachers if they are needed. Those that are not from transformers
            declare nothing.
        lengths: [B] int64 on the CPU, tokens of each prompt.
        max_new_tokens: The longest completion, in tokens.

    Raises:
        ValueError: A model is of a kind that cannot decode, holds too few positions, or is on another device.
    """
    prompt = int(lengths.max())
    if not isinstance(max_new_tokens, Integral) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}")
    devices = {}
    for name, model in models:
        if not is_transformers(model):
            continue
        check_kind(model, name)
        check_whole(model, name)
        inner = unwrap(model)
        limit = position_limit(inner.config)
        if limit is not None and prompt + max_new_tokens > limit:
            raise ValueError(
                f"the {name} has {limit} positions, but the longest prompt ({prompt} tokens) and max_new_tokens "
                f"({max_new_tokens}) need {prompt + max_new_tokens}"
            )
        check_rotary(inner.config, f"{name} {type(inner).__name__}", int(lengths.min()), prompt + max_new_tokens)
        parameter = next(inner.parameters())
        # A device map and sharding (FSDP2's DTensor, ZeRO-3) move inputs to their model themselves.
        if not hasattr(inner, "hf_device_map") and type(parameter) is nn.Parameter and not hasattr(parameter, "ds_id"):
            devices[name] = parameter.device
    if len(set(devices.values())) > 1:
        raise ValueError(f"student and teacher must be on one device, got {devices}")
