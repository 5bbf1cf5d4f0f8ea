"""Checks how `trb` refuses: one line, exit code 2, and no folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trbext.cli import main


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Returns the one line with which `trb` reports a fault of the user."""
    before = set(Path().iterdir())
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("trb: ")
    assert set(Path().iterdir()) == before
    return lines[0]


def write(config: dict[str, Any], **changes: Any) -> str:
    """Writes the file of a configuration; `config.yaml` is written anew."""
    Path("config.yaml").write_text(yaml.safe_dump(config | changes), encoding="utf-8")
    return "config.yaml"
