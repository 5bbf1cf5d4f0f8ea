"""Prompts as token ids, and token ids as a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

Prompt = str | list[dict[str, Any]]  # plain text, or the messages of a conversation


def left_padded(
    prompt_ids: Sequence[Sequence[int]], pad_token_id: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and attention_mask [B, P], int64, of prompts of unequal length."""
    width = max(map(len, prompt_ids))
    ids = [[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompt_ids]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompt_ids]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def encode_prompts(tokenizer: Any, prompts: list[Prompt], **template: Any) -> list[list[int]]:
    """Token ids of prompts of one kind: text as it is, messages through the chat template (with its options)."""
    if isinstance(prompts[0], str):
        encoded = tokenizer(prompts)
    else:
        check_chat_template(prompts[0], tokenizer, template)
        encoded = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, tokenize=True, return_dict=True, **template
        )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def check_chat_template(prompt: Prompt, tokenizer: Any, template: Mapping[str, Any]) -> None:
    """ValueError if `prompt` is a conversation and neither the tokenizer nor the options hold a chat template."""
    if not isinstance(prompt, str) and not (template.get("chat_template") or tokenizer.chat_template):
        raise ValueError(
            "prompts of messages (system_prompt makes them, too) need a chat template, and the tokenizer of "
            f"{tokenizer.name_or_path} has none: use plain text, or save the tokenizer with a template"
        )
