"""Encodes prompts as token ids, and pads token ids to a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

Prompt = str | list[dict[str, Any]]  # plain text, or the messages of a conversation


def left_padded(
    prompt_ids: Sequence[Sequence[int]], pad_token_id: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads prompts of unequal length on the left.

    Args:
        prompt_ids: Token ids of B prompts.
        pad_token_id: Fills the places before a prompt.
        device: Of the tensors.

    Returns:
        input_ids and attention_mask, [B, P] int64, P the length of the longest prompt in tokens.
    """
    width = max(map(len, prompt_ids))
    ids = [[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompt_ids]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompt_ids]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def encode_prompts(tokenizer: Any, prompts: list[Prompt], **template: Any) -> list[list[int]]:
    """Encodes prompts that are all text or all conversations.

    Args:
        tokenizer: The student's.
        prompts: Text is encoded as it is, messages through the chat template.
        **template: Options of the chat template.

    Returns:
        Token ids of each prompt.

    Raises:
        ValueError: Messages, and there is no chat template.
    """
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
    """Checks that a prompt of messages has a chat template, of the tokenizer or among the options.

    Raises:
        ValueError: It has none.
    """
    if not isinstance(prompt, str) and not (template.get("chat_template") or tokenizer.chat_template):
        raise ValueError(
            "prompts of messages (system_prompt makes them, too) need a chat template, and the tokenizer of "
            f"{tokenizer.name_or_path} has none: use plain text, or save the tokenizer with a template"
        )
