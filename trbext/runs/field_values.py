"""Hands the values of a YAML file to the parser of the command line, which has an option per field of `trb train`.

Numbers and text become words, so that values of a file are converted and refused as those of the command line are.
Lists and mappings, and null if a field may be unset, become defaults: argparse converts only text.
"""

from __future__ import annotations

import copy
import re
import types
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from ..errors import UsageError

TEXT_OR_NUMBER = {"draft_length"}  # text by its type, as HfArgumentParser has no "number or auto"


def words_of(settings: Mapping[str, Any], kinds: Mapping[str, Any], parser: ArgumentParser) -> list[str]:
    """Turns settings into words `--name=value`.

    Args:
        settings: Fields and values.
        kinds: The resolved type of each field by its name.
        parser: Gets what cannot be a word as a default.

    Returns:
        The words.

    Raises:
        UsageError: Null for a field that cannot be unset, a list or mapping for a field of one value, or a value that
            YAML does not read as text for a field that is text.
    """
    words = []
    for name, value in settings.items():
        options = _alternatives(kinds[name])
        containers = {get_origin(option) or option for option in options}
        if value is None:
            if type(None) not in options:
                raise UsageError(f"{name} must have a value, got null: remove the line for the default")
            parser.set_defaults(**{name: None})
        elif isinstance(value, (list, dict)):
            if type(value) not in containers:
                what = "list" if isinstance(value, list) else "mapping"
                raise UsageError(f"{name} must be one value, got the {what} {value!r}")
            given = _checked_list(name, value, options) if isinstance(value, list) else value
            parser.set_defaults(**{name: copy.deepcopy(given)})  # transformers edits some mappings in place
        elif isinstance(value, str):
            words.append(f"--{name}={value}")
        else:
            words.append(f"--{name}={_word(name, value, options)}")
    return words


def joined_numbers(words: Sequence[str]) -> list[str]:
    """Joins words such as `--name -1e-5` to `--name=-1e-5`: argparse would take the number for an option."""
    joined: list[str] = []
    for word in words:
        if joined and re.fullmatch(r"--[^=]+", joined[-1]) and re.fullmatch(r"-(\d.*|\.\d.*|inf|nan)", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _word(name: str, value: bool | int | float, options: tuple[Any, ...]) -> str:
    """Writes `value`, which YAML does not read as text, as a word; UsageError if the field accepts only text."""
    enums = [option for option in options if isinstance(option, type) and issubclass(option, Enum)]
    if value is False and any("no" in [member.value for member in enum] for enum in enums):
        return "no"  # `eval_strategy: no`, which YAML reads as false
    only_text = all(option in (str, type(None)) or option in enums for option in options)
    if only_text and name not in TEXT_OR_NUMBER:
        raise UsageError(f"{name} is text, which YAML reads as {value!r}: quote it, as in {name}: '...'")
    if isinstance(value, bool) and not any(option is bool or get_origin(option) is Literal for option in options):
        raise UsageError(f"{name} must be {_names(options)}, got {str(value).lower()}")
    return str(value)


def _checked_list(name: str, values: list[Any], options: tuple[Any, ...]) -> list[Any]:
    (kind,) = [option for option in options if get_origin(option) is list]
    (element,) = get_args(kind)
    for value in values:
        if element is str and not isinstance(value, str):
            raise UsageError(f"{name} is a list of text, of which YAML reads an entry as {value!r}: quote it")
    return values


def _names(options: tuple[Any, ...]) -> str:
    words = {int: "a whole number", float: "a number"}
    return " or ".join(words[option] for option in options if option in words) or "another value"
