"""Loads the objects of a user that a configuration names, makes them, and checks that they can be called.

Such objects are verifiers and rollout policies.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any


def load_object(kind: str, name: str) -> Callable[..., Any]:
    """Imports the callable that `name` names as "module:object".

    Args:
        kind: What the error calls it, such as "rollout policy".
        name: "module:object".

    Raises:
        ValueError: There is no such module or object, the module fails while it is imported, or the object is not
            callable.
    """
    module, _, attribute = name.partition(":")
    if not (module and attribute) or module.startswith("."):  # no package here to which a module could be relative
        raise ValueError(f"a {kind} is named as 'module:object', got {name!r}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the {kind} {name!r} could not be imported: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises, or a script that exits
        reason = " ".join(str(error).split())
        raise ValueError(f"the {kind} {name!r} could not be imported: {type(error).__name__}: {reason}") from error
    if not callable(found):
        raise ValueError(f"the {kind} {name!r} must be callable, got {type(found).__name__}")
    loaded: Callable[..., Any] = found
    return loaded


def made_with(name: str, make: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
    """Calls `make(**kwargs)`.

    Args:
        name: What the error calls it.
        make: A class or function of a user.
        kwargs: Its arguments by name.

    Raises:
        ValueError: The arguments do not fit, or `make` raises.
    """
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
    """Checks that `function` can be called with so many positional arguments.

    Args:
        what: What the error calls the function.
        function: Of a user.
        arguments: The names of the arguments, for the error.

    Raises:
        ValueError: It cannot.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a few functions written in C have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{what} must take ({', '.join(arguments)}), but takes {signature}: {error}") from error
