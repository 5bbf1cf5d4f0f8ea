"""Takes values out of a study file, and checks that each has the type that its key needs."""

from __future__ import annotations

from typing import Any

from ...errors import UsageError


def mapping(declared: dict[str, Any], key: str) -> dict[str, Any]:
    """Returns the mapping under a key. UsageError if it is missing or empty."""
    value = declared.get(key)
    if not isinstance(value, dict) or not value:
        raise UsageError(f"{key} must hold fields and values, got {value!r}")
    return value


def text(declared: dict[str, Any], key: str, default: str) -> str:
    """Returns the text under a key. UsageError if YAML reads another type."""
    value = declared.get(key) or default
    if not isinstance(value, str):
        raise UsageError(f"{key} is text, which YAML reads as {value!r}: quote it")
    return value


def truth(declared: dict[str, Any], key: str, default: bool) -> bool:
    """Returns the true or false under a key. UsageError if it is neither."""
    value = declared.get(key, default)
    if not isinstance(value, bool):
        raise UsageError(f"{key} must be true or false, got {value!r}")
    return value


def as_list(value: Any) -> list[Any]:
    """Returns a list as it is, and another value as a list of one."""
    return value if isinstance(value, list) else [value]


def count(name: str, value: Any) -> int:
    """Returns a whole number of at least 1. UsageError if it is none."""
    if type(value) is not int or value < 1:
        raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value
