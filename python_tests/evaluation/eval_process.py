"""Runs `trb eval` in a process of its own, and sees what its engine's processes and its records are like afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 3000.0  # seconds until what must happen counts as not happening, on a machine that does much else


@contextmanager
def eval_process(words: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `trb eval` in a session of its own, and kills it at the end of the block if it lives then."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "trbext", "eval", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def finished(words: Sequence[str], environment: dict[str, str], log: Path) -> None:
    """Runs `trb eval` to its end, which must be a good one."""
    with eval_process(words, environment, log) as process:
        assert process.wait() == 0, log.read_text(encoding="utf-8")[-3000:]


def await_(what: Callable[[], object], message: str) -> None:
    """Waits until something holds."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, message
        time.sleep(0.02)


def drawn(client: subprocess.Popen[bytes], paths: Sequence[Path], least: int, log: Path) -> None:
    """Waits until records have so many completions together, which a client draws."""

    def enough() -> bool:
        assert client.poll() is None, log.read_text(encoding="utf-8")[-3000:]
        return sum(len(completions(path)) for path in paths) >= least

    await_(enough, "nothing was drawn")


def lines(path: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a record; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def completions(path: Path) -> list[tuple[int, int]]:
    """Returns the prompt and the sample of each completion of a record, in its order."""
    return [(line["prompt"], line["sample"]) for line in lines(path) if "completion" in line]
