"""Refuses models without running them: kinds that cannot decode rollouts.

`model_check.py` checks the rest by running the model.
"""

from __future__ import annotations

from typing import Any

from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from .cached_model import unwrap


class UnsupportedModel(ValueError):
    """This package cannot decode or train a model correctly."""


def check_kind(model: Any, name: str) -> None:
    """Refuses models of kinds that are known without a forward.

    Args:
        model: May be inside DDP or PEFT.
        name: What an error calls it, "student" or "teacher".

    Raises:
        UnsupportedModel: It is prompt-tuned, an encoder-decoder, without weights or without a head.
    """
    wrapped, inner = getattr(model, "module", model), unwrap(model)
    kind, reason = type(inner).__name__, ""
    if any(config.is_prompt_learning for config in (getattr(wrapped, "peft_config", None) or {}).values()):
        reason = "is prompt-tuned: its virtual tokens lie outside the model. Use a weight-based adapter such as LoRA"
    elif getattr(inner.config, "is_encoder_decoder", False):
        reason = "is an encoder-decoder, and rollouts need a decoder-only causal LM"
    elif not hasattr(inner, "hf_device_map") and any(parameter.is_meta for parameter in inner.parameters()):
        reason = "is on the meta device: load its weights first, with from_pretrained or to_empty and load_state_dict"
    elif not hasattr(inner, "get_output_embeddings") or inner.get_output_embeddings() is None:
        reason = "has no language-model head: load it with AutoModelForCausalLM"
    if reason:
        raise UnsupportedModel(f"the {name} {kind} {reason}")


def check_whole(model: Any, name: str) -> None:
    """Refuses sharded weights: processes that decode different numbers of tokens would wait for each other for ever.

    Raises:
        UnsupportedModel: The weights of `model`, which the error calls `name`, are sharded.
    """
    inner = unwrap(model)
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise UnsupportedModel(
            f"the {name} {type(inner).__name__} is sharded by FSDP1, which gives no whole weights outside its forward: "
            "use fully_shard (FSDP2) and decode inside trbext.unsharded(model)"
        )
    if any(hasattr(parameter, "ds_id") and parameter.numel() == 0 for parameter in inner.parameters()):
        raise UnsupportedModel(
            f"the {name} {type(inner).__name__} is sharded by DeepSpeed ZeRO-3: decode inside "
            "deepspeed.zero.GatheredParameters(model.parameters())"
        )
    sharded = any(isinstance(module, FSDPModule) for module in inner.modules())
    if sharded and any(isinstance(parameter, DTensor) for parameter in inner.parameters()):
        raise UnsupportedModel(
            f"the {name} {type(inner).__name__} is sharded by FSDP2, and processes that decode different "
            "numbers of tokens would wait for each other for ever: decode inside trbext.rollout.unsharded(model)"
        )


def rotary_switch(config: Any) -> tuple[str, int] | None:
    """Returns the rope type, and the length past which all positions of a row are rotated by other factors.

    Past it, what was cached before is of no use, and the longest row of a batch decides for the others. Returns None if
    there is no such length.
    """
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    for rope in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        kind = rope.get("rope_type")
        if kind in ("dynamic", "longrope"):
            length = rope.get("original_max_position_embeddings") or getattr(
                text, "original_max_position_embeddings", None
            )
            return kind, int(length or text.max_position_embeddings)
    return None


def check_rotary(config: Any, name: str, shortest: int, longest: int) -> None:
    """Checks that no row grows past a change of its rotary factors.

    Args:
        config: Of the model.
        name: What an error calls the model.
        shortest: Tokens of the shortest prompt.
        longest: Tokens of the longest row to come.

    Raises:
        UnsupportedModel: A row would.
    """
    switch = rotary_switch(config)
    if switch is None or longest <= switch[1] or (switch[0] == "longrope" and shortest > switch[1]):
        return
    raise UnsupportedModel(
        f"the {name} rotates all positions by other factors past {switch[1]} tokens (rope_type "
        f"{switch[0]!r}), which its cache does not follow: prompt and completion must fit into {switch[1]}, got "
        f"{longest}"
    )
