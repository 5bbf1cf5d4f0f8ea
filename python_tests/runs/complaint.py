"""What `trb` writes to the terminal when it refuses to go on."""

import pytest


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on standard error, which names the command."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("trb: ")
    return lines[0]
