"""Computes the last hidden states at the prefixes of completions, by one forward without a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .cached_model import backbone


def completion_states(model: Any, input_ids: Tensor, attention_mask: Tensor, kept: int) -> Tensor:
    """Returns the states that the backbone of `model` hands to its head for each of the last tokens.

    Rows are first moved to the left, so that all padding follows the tokens and a causal LM sees none of it: absolute
    positions count from the first token of the row, recurrent states begin there, and attention needs no mask. With
    padding in front, models without position_ids, and models with a recurrent state that no mask reaches, would score
    another sequence.

    Args:
        model: A causal LM out of DDP, DeepSpeed and PEFT.
        input_ids: [B, S] int64.
        attention_mask: [B, S], the ones of each row in one piece.
        kept: How many of the last columns to return, below S.

    Returns:
        [B, kept, H], of the model's dtype, at the prefix of each token. States at tokens that the mask excludes mean
        nothing.
    """
    first = attention_mask.argmax(1)[:, None]
    longest = int(attention_mask.sum(1).max())
    columns = torch.arange(longest, device=input_ids.device)
    moved = input_ids.gather(1, (first + columns).clamp(max=input_ids.shape[1] - 1))
    states: Tensor = backbone(model)(input_ids=moved, use_cache=False)[0]
    predicting = torch.arange(input_ids.shape[1] - kept - 1, input_ids.shape[1] - 1, device=input_ids.device)
    at = (predicting - first).clamp(0, longest - 1).to(states.device)  # a device_map may end on another device
    return states.gather(1, at[..., None].expand(-1, -1, states.shape[2]))
