"""Reads the key of a server, and refuses one that no header can hold, whose error would print it."""

from __future__ import annotations

import os

from ...errors import UsageError


def read_key(given: str | None, variable: str) -> str:
    """Returns a server's key without the spaces and newlines around it, as `cat` adds one to that of a file.

    Args:
        given: By the caller; None is that of the environment.
        variable: Of the environment, which has the key.

    Returns:
        The key, "" if there is none.

    Raises:
        UsageError: It has a character that no header can hold. The message does not show the key.
    """
    key = (os.environ.get(variable, "") if given is None else given).strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"{variable} must be a key of printable ASCII characters, got one with others")
    return key
