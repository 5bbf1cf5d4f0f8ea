"""Trains one run of a study, from its last checkpoint on: `python -m trbext.studies.compare.worker CONFIG.yaml`.

It stops after the current optimizer step, with a checkpoint, when its standard input closes: a killed study must not
leave processes behind. Exit codes are those of `trb`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from ...data.yaml_file import read_yaml
from ...errors import UsageError
from ...runs.exit_codes import exit_code
from ...runs.folder import RunFolder
from ...runs.uncollected_imports import uncollected_imports

FINISHED = "finished.json"  # in the run folder, written last
SECONDS_FOR_ANOTHER = 120  # to end its step, when the study was killed and started again


def finished(folder: Path) -> bool:
    """Returns whether the run in `folder` is complete."""
    return (folder / FINISHED).exists()


def main(config: Path, keep_model: bool) -> int:
    """Trains the run of a settings file in this process.

    Args:
        config: The settings file, beside the run folder.
        keep_model: Whether model/ stays after the end of the run.

    Returns:
        The exit code.
    """
    threading.Thread(target=_stop_when_orphaned, daemon=True).start()
    return exit_code(lambda: _train_locked(config, keep_model))


def _train_locked(config: Path, keep_model: bool) -> None:
    try:
        with FileLock(config.with_suffix(".lock"), timeout=SECONDS_FOR_ANOTHER):
            train(config, keep_model)
    except Timeout:
        raise UsageError(f"another process is at work on {config.with_suffix('')}") from None


def train(config: Path, keep_model: bool) -> None:
    """Trains the run of a settings file to its end, and removes what only served to resume it.

    Args:
        config: The settings file.
        keep_model: Whether model/ stays.

    Raises:
        UsageError: As `train_warmed_up`, or the folder holds files but no run.
        Interrupted: As `train_warmed_up`.
    """
    with uncollected_imports():
        from ...runs.lora_warmup import forget_warmup, train_warmed_up
        from ...runs.settings import parse_settings

    arguments, trb_config, settings = parse_settings(read_yaml(config))
    folder = RunFolder(Path(trb_config.output_dir))
    if not finished(folder.path):
        if folder.settings() is None and not folder.is_empty():
            raise UsageError(f"{folder.path} holds files but no run that can continue: delete it to begin anew")
        train_warmed_up(arguments, trb_config, settings, resume="auto", plot=False)
        partial = folder.path / (FINISHED + ".partial")
        partial.write_text(json.dumps({"finished_at": time.time()}), encoding="utf-8")
        partial.replace(folder.path / FINISHED)
    # Also of a run that was killed here the last time.
    for checkpoint in folder.path.glob("checkpoint-*"):  # they only served to resume
        shutil.rmtree(checkpoint)
    if not keep_model and folder.model.exists():
        shutil.rmtree(folder.model)
    forget_warmup(folder.path, keep_model=keep_model)


def _stop_when_orphaned() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock would be held when the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), keep_model="--keep-model" in sys.argv[2:]))
