"""Checks that what a user wrote can be called as it will be: a verifier, a rollout policy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def made_with(name: str, make: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
    """`make(**kwargs)`. ValueError: the arguments do not fit, or it raises."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # a few classes written in C have none
        signature = None
    try:
        if signature is not None:
            signature.bind(**kwargs)
    except TypeError as error:
        given = ", ".join(sorted(kwargs)) or "none"
        raise ValueError(f"{name} takes {signature}, got rollout_policy_kwargs {given}: {error}") from error
    try:
        return make(**kwargs)
    except Exception as error:
        raise ValueError(f"{name} could not be made: {type(error).__name__}: {error}") from error


def check_takes(what: str, function: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a few functions written in C have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{what} must take ({', '.join(arguments)}), but takes {signature}: {error}") from error
