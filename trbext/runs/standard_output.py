"""Ends a command well whose standard output cannot be written: `trb train --fields | head -1`, a full disk."""

from __future__ import annotations

import errno
import io
import os
import sys

# Of a write to a stream. An error of a file of the user's has a name.
_OF_A_STREAM = {errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF}


class OutputClosed(Exception):
    """Standard output cannot be written. `quiet` says that its reader left, which is the reader's choice."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror}")
        self.quiet = isinstance(error, BrokenPipeError)


def is_of_output(error: BaseException) -> bool:
    """Returns whether `error` came from writing to standard output."""
    return isinstance(error, OSError) and error.filename is None and error.errno in _OF_A_STREAM


def print_anything() -> None:
    """Prints as an escape what the encoding of the output lacks, such as a study's title in the locale C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
