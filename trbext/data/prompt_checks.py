"""Checks every prompt of a run before it starts: a prompt that cannot be used would end the run later."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset

from .encoding import check_chat_template, encode_prompts
from .prompt_files import PromptsNotFound

logger = logging.getLogger(__name__)

BATCH = 1000


def check_rows(dataset: Dataset, source: str) -> None:
    """Checks that all prompts are text, or all are conversations, and none is empty.

    Args:
        dataset: Rows with a column "prompt".
        source: The name of the dataset, for the message.

    Raises:
        PromptsNotFound: A prompt cannot be used. The message names its row, counted from 1 among the rows that are left
            if some were chosen by a value.
    """
    kind: type | None = None
    number = 0
    for batch in dataset.select_columns("prompt").iter(BATCH):
        for prompt in batch["prompt"]:
            number += 1
            fault = _fault(prompt)
            if fault is None:
                kind = kind or type(prompt)
                if type(prompt) is not kind:
                    first = "text" if kind is str else "a conversation"
                    fault = f"must be {first}, as the first one, got {type(prompt).__name__}"
            if fault is not None:
                raise PromptsNotFound(f"prompts {source!r}: the prompt of row {number} {fault}")


def check_datasets(train: object, held_out: object) -> None:
    """Checks the datasets of a trainer as `check_rows` does. Of a stream, the columns of its first row are looked at.

    Args:
        train: The training prompts.
        held_out: One dataset, several by name, or None.

    Raises:
        TypeError: The training prompts are several datasets by name, or a name.
        PromptsNotFound: A dataset has no column "prompt", has a column of pictures, or a prompt cannot be used.
    """
    if isinstance(train, (Mapping, str)):  # a DatasetDict, of which only one split is meant
        got = f"{type(train).__name__} of {', '.join(map(str, train))}" if isinstance(train, Mapping) else repr(train)
        raise TypeError(f"train_dataset must be one dataset, got {got}")
    named = held_out.items() if isinstance(held_out, dict) else [("", held_out)]
    given = [("train_dataset", train), *((f"eval_dataset {name}".strip(), dataset) for name, dataset in named)]
    for name, dataset in given:
        if not isinstance(dataset, (Dataset, IterableDataset)):
            continue
        # An empty stream is TRL's to refuse.
        columns = dataset.column_names or list(next(iter(dataset), {"prompt": ""}))
        if "prompt" not in columns:
            raise PromptsNotFound(f"{name} must have a column 'prompt', got {', '.join(columns)}")
        pictures = [column for column in ("image", "images") if column in columns]
        if pictures:  # TRL would train on them with a processor, or fail at the first step
            raise PromptsNotFound(
                f"{name} must be prompts of text only, got a column {pictures[0]!r}: remove or rename it"
            )
        if isinstance(dataset, Dataset):
            check_rows(dataset, name)


def check_judged(held_out: object) -> None:
    """Checks that a verifier can judge completions of the held-out prompts: pass@1 is a mean over all of them.

    Args:
        held_out: One dataset, several by name, or None.

    Raises:
        TypeError: One is a stream.
    """
    for dataset in held_out.values() if isinstance(held_out, dict) else [held_out]:
        if dataset is not None and not isinstance(dataset, Dataset):
            raise TypeError(f"eval_dataset must be a datasets.Dataset for a verifier, got {type(dataset).__name__}")


def _fault(prompt: object) -> str | None:
    if isinstance(prompt, str):
        return None if prompt.strip() else f"must not be empty, got {prompt!r}"
    if not isinstance(prompt, list):
        return f"must be text or a list of messages, got {prompt!r:.80}"
    if not prompt:
        return "must not be empty, got []"
    for message in prompt:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"must hold messages with a role and a content, got {message!r:.80}"
        if message.get("content") is None and not message.get("tool_calls"):
            return f"must hold messages with a role and a content, got {message!r:.80}"
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        for part in parts:  # a template would leave a picture out, or write a token for it that no model sees
            if isinstance(part, dict) and part.get("type") not in (None, "text"):
                return f"must hold text only, got a part of type {part['type']!r}"
    return None


def check_encodings(
    dataset: Dataset,
    source: str,
    tokenizer: Any,
    template: Mapping[str, Any],
    max_completion_length: int,
    positions: Mapping[str, int | None],
) -> list[list[int]]:
    """Encodes every prompt, and checks that it fits with its completion into the positions of the models.

    Warns if prompts end with the EOS token.

    Args:
        dataset: Rows with a column "prompt".
        source: The name of the dataset, for the message.
        tokenizer: The student's.
        template: Options of the chat template.
        max_completion_length: In tokens.
        positions: Number of positions by the name of the model, for the message; None if a model has no limit.

    Returns:
        Token ids of each prompt.

    Raises:
        ValueError: A prompt cannot be encoded, has no tokens or does not fit.
    """
    limits = {name: limit for name, limit in positions.items() if limit is not None}
    model = min(limits, key=lambda name: limits[name]) if limits else ""
    room = limits[model] - max_completion_length if limits else None
    if room is not None and room < 1:
        raise PromptsNotFound(
            f"max_completion_length {max_completion_length} leaves no room for a prompt in the {limits[model]} "
            f"positions of the {model}"
        )
    check_chat_template(dataset[0]["prompt"], tokenizer, template)
    found: list[list[int]] = []
    ends = 0
    for batch in dataset.select_columns("prompt").iter(BATCH):
        for ids in _encoded(batch["prompt"], source, len(found), tokenizer, template):
            found.append(ids)
            number = len(found)
            if not ids:
                raise PromptsNotFound(f"prompts {source!r}: the prompt of row {number} has no tokens")
            if room is not None and len(ids) > room:
                raise PromptsNotFound(
                    f"prompts {source!r}: the prompt of row {number} has {len(ids)} tokens, which with "
                    f"max_completion_length {max_completion_length} exceed the {limits[model]} positions of the "
                    f"{model}: leave out longer ones (max_prompt_length: {room}), or shorten the completions"
                )
            ends += ids[-1] == tokenizer.eos_token_id
    if ends:
        logger.warning(
            "%d of %d prompts end with the EOS token %r, so that completions begin after the end of a text: save the "
            "tokenizer without add_eos_token, or change the chat template",
            ends,
            len(found),
            tokenizer.eos_token,
        )
    return found


def _encoded(
    prompts: list[Any], source: str, before: int, tokenizer: Any, template: Mapping[str, Any]
) -> list[list[int]]:
    try:
        return encode_prompts(tokenizer, prompts, **template)
    except Exception as together:  # jinja2's errors, and whatever a template's own code raises
        for number, prompt in enumerate(prompts, before + 1):
            try:
                encode_prompts(tokenizer, [prompt], **template)
            except Exception as error:
                raise PromptsNotFound(
                    f"prompts {source!r}: the prompt of row {number} cannot be encoded: {error}"
                ) from error
        raise PromptsNotFound(f"prompts {source!r} cannot be encoded: {together}") from together
