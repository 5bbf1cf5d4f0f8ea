"""Runs `trb train` and a study's worker for test_kill.py, in processes that may be killed between two accesses to
files."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from trbext.cli import main
from trbext.studies.compare import worker


def kill_at(event: int, folder: str) -> None:
    """Ends this process at its `event`-th opening, renaming or removal of a file of `folder`."""
    left = [event]

    def count(name: str, arguments: tuple[Any, ...]) -> None:
        if name in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
            path = arguments[0]
            if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(folder):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def trb(words: list[str], folder: str, event: int | None) -> int:
    """Runs `trb` with these words, and kills it at its `event`-th access to a file of its folder (None = never)."""
    prepare(folder, event)
    return main(words)


def work(file: str, keep_model: bool, folder: str, event: int | None) -> None:
    """Runs a study's worker alike."""
    prepare(folder, event)
    worker.train(Path(file), keep_model=keep_model)


def prepare(folder: str, event: int | None) -> None:
    Figure.tight_layout = lambda *_: None  # where labels lie takes a third of the time of a plot
    if event is not None:
        kill_at(event, folder)
