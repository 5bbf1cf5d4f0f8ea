"""Reads a file of prompts or a dataset of the Hub; one line says why it cannot be read."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import (
    Dataset,
    Features,
    Json,
    LargeList,
    List,
    Value,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    load_dataset,
)

FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_OF_JSON = {".jsonl", ".json", ".ndjson"}  # datasets reads the last one in a folder too
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC}


class PromptsNotFound(ValueError):
    """The prompts cannot be read, do not hold the column, or cannot be used."""


def read_dataset(source: str, split: str) -> Dataset:
    """Reads the rows of a file or a dataset.

    Args:
        source: A file of one of FILE_FORMATS, a folder of such files, or "owner/name" or "owner/name:config" on the
            Hub.
        split: Of a folder or of a dataset of the Hub.

    Returns:
        The rows as the file holds them now. Texts of JSON that look like dates stay texts, its numbers are not
        rounded outside of unlike objects (there to 10 digits), and all values of a .csv file are texts, as they are
        written. The rows of a folder or of the Hub are as datasets reads them.

    Raises:
        PromptsNotFound: It cannot be read, or a value of JSON on this machine beside those of other types would be
            changed. The message is one line that names the file or the dataset, and the line of a .jsonl file or the
            row.
    """
    path = Path(source)
    is_file = path.suffix in FILE_FORMATS
    if is_file and not path.exists():
        raise PromptsNotFound(f"no such file of prompts: {path}")
    if is_file and path.is_dir():
        raise PromptsNotFound(f"prompts {source!r} must be a file, got a folder")
    name, _, configuration = source.partition(":")
    try:
        if is_file:
            options = _as_text(path) if path.suffix == ".csv" else {}
            options["description"] = _digest(path)  # or datasets takes a file of equal path and time from its cache
            with quietly():  # data_files are patterns, to which run[1].csv would be run1.csv
                rows = load_dataset(
                    FILE_FORMATS[path.suffix], data_files=glob.escape(str(path)), split="train", **options
                )
                if FILE_FORMATS[path.suffix] == "json" and _was_changed(rows, path):
                    rows = _json_rows(path)
        else:
            with quietly() if path.is_dir() else nullcontext():  # a bar is for downloads
                rows = load_dataset(name, configuration or None, split=split)
    except Exception as error:  # of any kind: StopIteration for an empty file, ArrowInvalid, UnicodeDecodeError, ...
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
            raise PromptsNotFound(
                f"prompts {source!r} are read through the cache of datasets, which cannot be written ({error}): set "
                "HF_HOME to a folder that can"
            ) from error
        if is_file:
            reason = _fault_of_json_lines(path) if path.suffix == ".jsonl" else None
            if reason is None and FILE_FORMATS[path.suffix] == "json":
                reason = _fault_of_long_numbers(path)
            raise PromptsNotFound(f"prompts {source!r}: {reason or _reason(error)}") from error
        formats = ", ".join(FILE_FORMATS)
        what = "folder" if path.is_dir() else "dataset"
        raise PromptsNotFound(
            f"prompts {source!r} are neither 'demo', a {formats} file, nor a {what} that can be loaded: "
            f"{_reason(error)}"
        ) from error
    if "Json(" in str(rows.features):
        files = [path] if is_file else _files_of(name, configuration, split) if Path(name).is_dir() else []
        for file in files:
            if file.suffix not in _OF_JSON or not file.is_file():
                continue
            try:
                fault = _fault_of_mixed_values(rows.features, file)
            except ValueError as error:  # no UTF-8, as a folder's card may say
                fault = f"its values of several types cannot be checked: {_reason(error)}"
            if fault is not None:
                raise PromptsNotFound(f"prompts {source!r}: {'' if is_file else f'{file.name}: '}{fault}")
    return rows


def _files_of(folder: str, configuration: str, split: str) -> list[Path]:
    """Returns the files of a folder that datasets reads for a split, such as "train[:5]+test"."""
    files = datasets.load_dataset_builder(folder, configuration or None).config.data_files or {}
    chosen = {part.strip() for part in re.split(r"[+[]", split)}
    return [Path(file) for name, each in files.items() if {name, "all"} & chosen for file in each]


@contextmanager
def refused_as_prompts(source: str) -> Iterator[None]:
    """Turns the error of text that is not UTF-8, which datasets raises only when it is read, into PromptsNotFound."""
    try:
        yield
    except UnicodeDecodeError as error:
        reason = _fault_of_json_lines(Path(source)) if source.endswith(".jsonl") else None
        raise PromptsNotFound(f"prompts {source!r}: {reason or f'not UTF-8: {error}'}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Hides the progress bars of datasets, and its log of errors that it raises as well."""
    verbosity, hidden = datasets.logging.get_verbosity(), are_progress_bars_disabled()
    disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not hidden:
            enable_progress_bars()


def _was_changed(rows: Dataset, path: Path) -> bool:
    """Returns whether datasets has made dates of texts, or may have rounded numbers of a file of JSON.

    It rounds whole numbers beside fractions, and all fractions of a file that is a list, or that holds lists of unlike
    objects: in those it always rounds them, to 10 digits.
    """
    fields = rows.data.schema
    if any(
        word in str(field.type) for field in fields for word in ("timestamp[", "date32", "date64", "time32", "time64")
    ):
        return True
    exact = path.suffix == ".jsonl" and "Json(" not in str(rows.features)
    fractions = (values for name in fields.names for values in _fractions(rows.data.column(name)))
    return any(pc.any(pc.greater_equal(pc.abs(values), 2.0**53 if exact else 0.0)).as_py() for values in fractions)


def _fractions(column: pa.ChunkedArray) -> Iterator[pa.ChunkedArray]:
    """Yields the floats of a column, also those in its lists and objects."""
    if pa.types.is_floating(column.type):
        yield column
    elif pa.types.is_struct(column.type):
        for part in column.flatten():
            yield from _fractions(part)
    elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        yield from _fractions(pc.list_flatten(column))


def _json_rows(path: Path) -> Dataset:
    """Reads the objects of a file, or of the list that it is, by json, into memory."""
    rows = _objects(path)
    names = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names}, on_mixed_types="use_json")


def _objects(path: Path) -> list[dict[str, Any]]:
    text, at = path.read_text(encoding="utf-8-sig").strip(), 0
    rows: list[Any] = []
    decoder = json.JSONDecoder()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        rows += value if isinstance(value, list) else [value]
        while at < len(text) and text[at].isspace():
            at += 1
    return [row if isinstance(row, dict) else {"text": row} for row in rows]  # as datasets names a list of texts


def _fault_of_long_numbers(path: Path) -> str | None:
    """Returns the first whole number that no column of numbers holds; None if there is none, or no JSON."""
    with suppress(ValueError):
        for number, row in enumerate(_objects(path), 1):
            for name, value in row.items():
                if _exceeds_64_bits(value):
                    return f"row {number}: {name!r} holds a whole number of more than 64 bits"
    return None


def _exceeds_64_bits(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list):
        return any(map(_exceeds_64_bits, parts))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _fault_of_mixed_values(features: Features, path: Path) -> str | None:
    """Returns the first value, of a file whose values are of unlike types, that datasets would change."""
    for number, row in enumerate(_objects(path), 1):
        for name, feature in features.items():
            for value, found in _changed(feature, row.get(name)):
                beside = "beside values of another type"
                return f"row {number}: {name!r} holds {value!r:.80} {beside}, and would be read as {found!r:.80}"
    return None


def _changed(feature: Any, value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields the values that datasets would change in a column of unlike types, and what it makes of them: it takes the
    text 007 for JSON, and rounds fractions. In objects it only rounds."""
    if isinstance(feature, Json) and value is not None and not isinstance(value, dict):
        found = feature.decode_example(feature.encode_example(value))
        if found != value:
            yield value, found
    elif isinstance(feature, dict):
        for name, part in feature.items():
            yield from _changed(part, (value or {}).get(name))
    elif isinstance(feature, List | LargeList):
        for each in value or ():
            yield from _changed(feature.feature, each)


def _digest(path: Path) -> str:
    """Returns a digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def _as_text(path: Path) -> dict[str, Any]:
    """Returns the options by which datasets keeps every value of a .csv file: it would make 7 of 007, None of NA.

    Raises:
        ParserError: (a ValueError) the first row is longer than the header, of whose first columns pandas would make
            an index. It refuses a later one by itself.
    """
    pd.read_csv(path, header=None, nrows=2, dtype=str)
    names = pd.read_csv(path, nrows=0).columns  # as datasets will read them: an index has no name in the file
    return {"features": Features({name: Value("string") for name in names}), "keep_default_na": False}


def _fault_of_json_lines(path: Path) -> str | None:
    """Returns the fault of the first faulty line, by itself or beside those before; None if there is no fault."""
    rows = 0
    kinds: dict[str, tuple[type, int]] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig")
                row = json.loads(text) if text.strip() else {}
            except UnicodeDecodeError as error:
                return f"line {number} is not UTF-8: {error.reason} {line[error.start : error.start + 1]!r}"
            except ValueError as error:
                return f"line {number} is not JSON: {error}"
            if not isinstance(row, dict):
                return f"line {number} must be a JSON object, got {type(row).__name__}"
            rows += bool(row)
            for name, value in row.items():
                kind, before = kinds.setdefault(name, (type(value), number))
                if value is not None and kind not in (type(value), type(None)):
                    found = type(value).__name__
                    return f"line {number}: {name!r} is of type {found}, on line {before} of type {kind.__name__}"
    return None if rows else "the file holds no rows"


def _reason(error: BaseException) -> str:
    """Returns the first lines of an error and of what caused it."""
    parts = []
    for each in (error, error.__cause__):
        text = str(each).strip().split("\n")[0] if each is not None else ""
        parts.append(f"KeyError: {text}" if isinstance(each, KeyError) else text)
    return ": ".join(filter(None, parts)) or type(error).__name__
