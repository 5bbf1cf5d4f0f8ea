"""Errors of commands end with one line and the documented exit code."""

from __future__ import annotations

import errno

import pytest

from trbext.errors import DiskFull, EngineFailed, Interrupted, NonFiniteLogits, NonFiniteTraining, UsageError
from trbext.runs.exit_codes import exit_code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("x must be\n1, got 2"), 2, "trb: x must be 1, got 2"),
        (KeyError("no such file"), 2, "trb: 'no such file'"),
        (Interrupted("stopped at step 3"), 130, "trb: stopped at step 3 with --resume"),
        (DiskFull("no more can be written"), 1, "trb: no more can be written with --resume"),
        (NonFiniteTraining("the loss is NaN"), 1, "trb: the loss is NaN"),
        (NonFiniteLogits("no token can be drawn"), 1, "trb: no token can be drawn"),
        (EngineFailed("the server is gone"), 1, "trb: the server is gone"),
    ],
)
def test_each_error_has_its_line_and_exit_code(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    assert exit_code(command, also_usage=(KeyError,), to_continue="with --resume") == code
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize("error", [KeyError("a defect"), OSError(errno.EPIPE, "Broken pipe")])
def test_other_errors_and_a_closed_output_are_not_caught(error: Exception) -> None:
    def command() -> None:
        raise error

    with pytest.raises(type(error)):
        exit_code(command, also_usage=(OSError,))
    assert exit_code(lambda: None) == 0
