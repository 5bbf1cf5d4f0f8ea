"""Reads for how many positions, and for how many token ids, a model was made."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .cached_model import unwrap

_NAMES = ("max_position_embeddings", "max_seq_len", "max_sequence_length")


def position_limit(config: Any) -> int | None:
    """Returns the positions that a model of this configuration was made for; None if it names no limit.

    RoPE that is stretched by a factor reaches further than `max_position_embeddings` says in some configurations.

    Raises:
        ValueError: It names a limit of 0 positions.
    """
    text = config.get_text_config()
    for name in _NAMES:
        if getattr(text, name, None) == 0:  # a negative number is no limit, as in XLNet
            model = getattr(config, "name_or_path", "") or "a model"
            raise ValueError(f"{name} in the configuration of {model} must be at least 1, got 0")
    found = [value for name in _NAMES if isinstance(value := getattr(text, name, None), int) and value > 0]
    if not found:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, Mapping))]
    stretched = [
        int(kind["factor"] * kind["original_max_position_embeddings"])
        for kind in kinds
        if kind.get("factor") and kind.get("original_max_position_embeddings")
    ]
    return max(found[0], *stretched) if stretched else found[0]


def embedded_ids(model: Any) -> int | None:
    """Returns how many token ids a model of transformers embeds; None if its embedding does not say."""
    found = None
    with suppress(NotImplementedError, AttributeError):  # transformers does not find the embedding of every class
        found = unwrap(model).get_input_embeddings().num_embeddings
    return found if isinstance(found, int) else None
