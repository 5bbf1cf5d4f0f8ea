"""Loads what a user names in a configuration as 'module:object'."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def load_object(kind: str, name: str) -> Callable[..., Any]:
    """Imports the callable that `name` names as "module:object".

    Args:
        kind: what the error calls it, such as "rollout policy".
        name: "module:object".

    Raises:
        ValueError: there is no such module or object, or it is not callable.
    """
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise ValueError(f"a {kind} is named as 'module:object', got {name!r}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the {kind} {name!r} could not be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"the {kind} {name!r} must be callable, got {type(found).__name__}")
    loaded: Callable[..., Any] = found
    return loaded
