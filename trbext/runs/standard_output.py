"""Ends a command without a traceback if its standard output cannot be written.

Examples are `trb train --fields | head -1` and a full disk.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# The file name of an error of writing to standard output. Without it, a full disk would look alike there and in a file.
_NAME = "standard output"


class OutputClosed(Exception):
    """Standard output cannot be written. `quiet` says that its reader left, which is the reader's choice."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror}")
        self.quiet = isinstance(error, BrokenPipeError)


def is_of_output(error: BaseException) -> bool:
    """Returns whether `error` came from writing to standard output."""
    return isinstance(error, OSError) and error.filename is _NAME


@contextmanager
def named_output() -> Iterator[None]:
    """Gives errors of writing to standard output, inside, a name by which `is_of_output` knows them."""
    stream = sys.stdout
    if stream is None:
        yield
        return
    named: Any = _Named(stream)
    sys.stdout = named
    try:
        yield
    finally:
        if sys.stdout is named:  # `discard` may have put None in its place
            sys.stdout = stream


class _Named:
    """A text stream whose `write` and `flush` raise errors with the name of standard output."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _naming():
            return self._stream.write(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with _naming():
            self._stream.flush()


@contextmanager
def _naming() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = _NAME
        raise


def print_anything() -> None:
    """Prints as an escape what the encoding of the output lacks, such as a study's title in the locale C."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # of a text stream over bytes
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def flush() -> None:
    """Writes what is buffered.

    Raises:
        OutputClosed: It cannot be written; nothing more will be tried.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        discard()
        raise OutputClosed(error) from error


def discard() -> None:
    """Drops the rest of the output: at its end, the interpreter would try to write it again and print an error."""
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    except (OSError, AttributeError, ValueError):  # no file behind it
        sys.stdout = None
