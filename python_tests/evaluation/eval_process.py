"""Runs `trb eval` in a process of its own, and sees what its engine's processes and its records are like afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PATIENCE = 600.0  # seconds until what must happen counts as not happening


def start(words: Sequence[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Starts `trb eval` in a session of its own."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "trbext", "eval", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )


def await_(what: Callable[[], object], message: str) -> None:
    """Waits until something holds."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, message
        time.sleep(0.02)


def lines(path: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a record; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def completions(path: Path) -> list[tuple[int, int]]:
    """Returns the prompt and the sample of each completion of a record, in its order."""
    return [(line["prompt"], line["sample"]) for line in lines(path) if "completion" in line]
