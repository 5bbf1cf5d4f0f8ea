"""Loads the prompts of a run from the built-in task, a file or the Hub, as a dataset with a column "prompt"."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from datasets import Dataset

from .prompt_checks import check_rows
from .prompt_files import PromptsNotFound, quietly, read_dataset, refused_as_prompts

BUILT_IN = ("demo", "demo:eval")
DEMO_PROMPTS = 8192  # of the built-in task, unless `limit` says otherwise


def load_prompts(
    source: str,
    *,
    split: str = "train",
    column: str = "prompt",
    answer_column: str | None = None,
    system_prompt: str | None = None,
    where: str | None = None,
    unique: bool = False,
    shuffle_seed: int | None = None,
    fits: Callable[[list[Any]], list[bool]] | None = None,
    limit: int | None = None,
    demo_seed: int = 0,
) -> Dataset:
    """Loads the prompts of a run.

    The steps come in the order of the arguments from `where` to `limit`. Only `limit` and `demo_seed` apply to the
    built-in task.

    Args:
        source: "demo" (the built-in task), "demo:eval" (its held-out prompts), a .jsonl, .json, .parquet or .csv file,
            or the name of a dataset on the Hub; "owner/name:config" names one of its configurations.
        split: Of a dataset on the Hub.
        column: Holds each prompt, plain text or the messages of a conversation; it is renamed to "prompt". Of messages
            with "from" and "value", as in OpenThoughts, the first message of a human becomes a plain-text prompt.
        answer_column: Is renamed to "answer", which verifiers read.
        system_prompt: Makes each plain-text prompt a conversation of this system message and the prompt.
        where: "column=value" keeps the rows that have the value.
        unique: Keeps the first row of each prompt.
        shuffle_seed: Shuffles the rows.
        fits: Of a batch of prompts as they will be used, which to keep.
        limit: Keeps the first rows, at most so many.
        demo_seed: Draws the prompts of the built-in task.

    Returns:
        The rows that are left, at least one.

    Raises:
        PromptsNotFound: There is no such source or column, a prompt cannot be used, or no row is left; the built-in
            task is given an argument that is for other sources.
    """
    if source in BUILT_IN:
        given = {
            "prompt_column": None if column == "prompt" else column,
            "answer_column": answer_column,
            "system_prompt": system_prompt,
            "prompts_where": where,
            "prompts_unique": unique or None,
            "prompts_shuffle_seed": shuffle_seed,
            "max_prompt_length": fits,
        }
        for name, value in given.items():
            if value is not None:
                got = "it" if callable(value) else repr(value)
                raise PromptsNotFound(f"{name} must be left out with the built-in prompts {source!r}, got {got}")
        from .counting_sort import prompts_dataset

        rows = prompts_dataset(limit or DEMO_PROMPTS, demo_seed, "eval" if source == "demo:eval" else "train")
        return Dataset.from_list(rows)
    if answer_column == column:
        raise PromptsNotFound(f"answer_column must be another column than that of the prompts, got {answer_column!r}")
    dataset = read_dataset(source, split)
    with quietly(), refused_as_prompts(source):
        if where is not None:
            dataset = _matching(dataset, source, where)
        named = {} if answer_column is None else {answer_column: "answer"}
        dataset = _renamed(dataset, source, {column: "prompt"} | named)
        if len(dataset) > 0 and _is_shared_gpt(dataset[0]["prompt"]):
            dataset = dataset.map(
                partial(_first_human_turn, source),
                input_columns=["prompt"],
                remove_columns=["prompt"],
                with_indices=True,
            )
        check_rows(dataset, source)
        if unique:
            dataset = dataset.select(_first_of_each(dataset))
        if shuffle_seed is not None:
            dataset = dataset.shuffle(seed=shuffle_seed)
        if system_prompt is not None:
            dataset = dataset.map(lambda row: {"prompt": _conversation(system_prompt, row["prompt"])})
        if fits is not None:
            dataset = dataset.filter(partial(_fitting, source, fits), input_columns=["prompt"], batched=True)
        if limit is not None:
            dataset = dataset.select(range(min(limit, len(dataset))))
    if len(dataset) == 0:
        raise PromptsNotFound(f"prompts {source!r} must have a row after the choice of rows, got none")
    return dataset


def _fitting(source: str, fits: Callable[[list[Any]], list[bool]], prompts: list[Any]) -> list[bool]:
    try:
        return fits(prompts)
    except Exception as error:  # jinja2's errors, and whatever a template's own code raises
        raise PromptsNotFound(f"prompts {source!r} cannot be encoded: {error}") from error


def _matching(dataset: Dataset, source: str, where: str) -> Dataset:
    column, equals, value = where.partition("=")
    if not equals:
        raise PromptsNotFound(f"a choice of rows must be 'column=value', got {where!r}")
    _check_column(dataset, source, column)
    return dataset.filter(lambda found: str(found) == value, input_columns=[column])


def _renamed(dataset: Dataset, source: str, names: dict[str, str]) -> Dataset:
    """Renames columns at once, so that two may change their names; what had one of the new names is left out."""
    for column in names:
        _check_column(dataset, source, column)
    replaced = [name for name in names.values() if name in dataset.column_names and name not in names]
    return dataset.remove_columns(replaced).rename_columns(names)


def _check_column(dataset: Dataset, source: str, column: str) -> None:
    if column not in dataset.column_names:
        raise PromptsNotFound(f"prompts {source!r} have no column {column!r}, only {', '.join(dataset.column_names)}")


def _is_shared_gpt(prompt: object) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict) and "from" in prompt[0]


def _first_human_turn(source: str, messages: object, index: int) -> dict[str, str]:
    where = f"prompts {source!r}: the prompt of row {index + 1}"
    if not isinstance(messages, list):
        raise PromptsNotFound(f"{where} must be a list of messages, as the first one, got {messages!r:.80}")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("from"), str) or "value" not in message:
            raise PromptsNotFound(
                f"{where} must hold messages with 'from' and 'value', as the first one, got {message!r:.80}"
            )
        if message["from"] in ("human", "user"):
            return {"prompt": message["value"]}
    raise PromptsNotFound(f"{where} must hold a message from 'human', got {[m['from'] for m in messages]}")


def _first_of_each(dataset: Dataset) -> list[int]:
    first: dict[str, int] = {}
    for index, row in enumerate(dataset.select_columns("prompt")):
        prompt = row["prompt"]
        first.setdefault(prompt if isinstance(prompt, str) else json.dumps(prompt), index)
    return list(first.values())


def _conversation(system_prompt: str, prompt: object) -> list[dict[str, str]]:
    if not isinstance(prompt, str):
        raise PromptsNotFound(f"system_prompt needs plain-text prompts, got {type(prompt).__name__}")
    return [{"role": "system", "content": system_prompt}, {"role": "user", "content": prompt}]
