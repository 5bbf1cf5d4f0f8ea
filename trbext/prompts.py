"""Prompts of a run, from the built-in task, a file or the Hub, as a `datasets.Dataset` with a column "prompt"."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, disable_progress_bars, enable_progress_bars, load_dataset
from datasets.exceptions import DatasetNotFoundError

FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
DEMO_PROMPTS = 8192  # of the built-in task, unless `limit` says otherwise


class PromptsNotFound(ValueError):
    """The prompts cannot be read, or do not hold the column."""


def load_prompts(
    source: str,
    *,
    split: str = "train",
    column: str = "prompt",
    system_prompt: str | None = None,
    limit: int | None = None,
    demo_seed: int = 0,
) -> Dataset:
    """The prompts of `source`, at most `limit`, in their order.

    source: "demo" (the built-in task; "demo:eval" its held-out prompts), a .jsonl, .json, .parquet or .csv file, or the
        name of a dataset on the Hub, of which `split` is taken.
    column: holds each prompt, plain text or the messages of a conversation; it is renamed to "prompt".
    system_prompt: makes each plain-text prompt a conversation of this system message and the prompt.
    Raises PromptsNotFound: no such source, or no such column.
    """
    if source in ("demo", "demo:eval"):
        from .demo.task import prompts_dataset

        rows = prompts_dataset(limit or DEMO_PROMPTS, demo_seed, "eval" if source == "demo:eval" else "train")
        return Dataset.from_list(rows)
    path = Path(source)
    try:
        if path.suffix in FILE_FORMATS:
            if not path.exists():
                raise PromptsNotFound(f"no such file of prompts: {path}")
            disable_progress_bars()  # a bar is for downloads
            dataset = load_dataset(FILE_FORMATS[path.suffix], data_files=str(path), split="train")
            enable_progress_bars()
        else:
            dataset = load_dataset(source, split=split)
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError) as error:
        formats = ", ".join(FILE_FORMATS)
        raise PromptsNotFound(
            f"prompts {source!r} are neither 'demo', a {formats} file, nor a dataset that can be loaded: {error}"
        ) from error
    if column not in dataset.column_names:
        raise PromptsNotFound(f"prompts {source!r} have no column {column!r}, only {', '.join(dataset.column_names)}")
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    if column != "prompt":
        dataset = dataset.rename_column(column, "prompt")
    if system_prompt is not None:
        dataset = dataset.map(lambda row: {"prompt": _conversation(system_prompt, row["prompt"])})
    return dataset


def _conversation(system_prompt: str, prompt: object) -> list[dict[str, str]]:
    if not isinstance(prompt, str):
        raise PromptsNotFound(f"system_prompt needs plain-text prompts, got {type(prompt).__name__}")
    return [{"role": "system", "content": system_prompt}, {"role": "user", "content": prompt}]
