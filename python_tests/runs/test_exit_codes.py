"""Errors of commands end with one line and the documented exit code."""

from __future__ import annotations

import errno
import io
import os
import sys

import pytest

from trbext.errors import DiskFailed, EngineFailed, Interrupted, NonFiniteLogits, NonFiniteTraining, UsageError
from trbext.runs.exit_codes import exit_code
from trbext.runs.standard_output import is_of_output, named_output


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("x must be\n1, got 2"), 2, "trb: x must be 1, got 2"),
        (KeyError("no such file"), 2, "trb: 'no such file'"),
        (Interrupted("stopped at step 3"), 130, "trb: stopped at step 3 with --resume"),
        (DiskFailed("no more can be written"), 1, "trb: no more can be written with --resume"),
        (NonFiniteTraining("the loss is NaN"), 1, "trb: the loss is NaN"),
        (NonFiniteLogits("no token can be drawn"), 1, "trb: no token can be drawn"),
        (EngineFailed("the server is gone"), 1, "trb: the server is gone"),
        (OSError(errno.EACCES, "Not yours", "a"), 2, "trb: [Errno 13] Not yours: 'a'"),
        (OSError(errno.ENOSPC, "Full"), 1, "trb: [Errno 28] Full"),  # of a file: nothing was printed
        (OSError(errno.EIO, "Broken"), 1, "trb: [Errno 5] Broken"),
    ],
)
def test_each_error_has_its_line_and_exit_code(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    assert exit_code(command, also_usage=(KeyError, OSError), to_continue="with --resume") == code
    assert capsys.readouterr().err == line + "\n"


def test_other_errors_are_not_caught() -> None:
    def command() -> None:
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        exit_code(command, also_usage=(OSError,))
    assert exit_code(lambda: None) == 0


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_an_output_that_cannot_be_written_is_not_caught(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(number, os.strerror(number))

    closed = Closed()
    monkeypatch.setattr(sys, "stdout", closed)
    with named_output(), pytest.raises(OSError, match=os.strerror(number)) as raised:
        exit_code(lambda: print("step 1"), also_usage=(OSError,))
    assert is_of_output(raised.value)
    assert sys.stdout is closed
