"""Reads and writes the folder of a run: `config.yaml`, `metrics.jsonl`, `checkpoint-N/`, `plot.png`, `model/`.

A killed process may leave a half-written checkpoint or metrics line behind; neither is ever read as if it were whole.
`model/` appears whole, with the state of the trainer, which says at which step the model was saved. `origin.json` holds
what decides the run beside its settings. The process that trains holds `train.lock`.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..data.yaml_file import dump_yaml, read_yaml
from ..errors import UsageError, errors_of
from ..training.checkpoints.completeness import weight_files
from ..training.checkpoints.contents import state_fault
from ..training.metrics.metric_table import Metrics

_CHECKPOINT = r"checkpoint-(\d+)"


@dataclass(frozen=True)
class RunFolder:
    """The paths and contents of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The file of the settings."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The file of the logged metrics."""
        return self.path / "metrics.jsonl"

    @property
    def plot(self) -> Path:
        """The picture of the curves."""
        return self.path / "plot.png"

    @property
    def model(self) -> Path:
        """The folder of the trained model."""
        return self.path / "model"

    @property
    def lock(self) -> Path:
        """The file that the process that trains has locked."""
        return self.path / "train.lock"

    @property
    def _origin(self) -> Path:
        return self.path / "origin.json"

    def check_name(self) -> None:
        """Checks that the file system can look for the folder.

        Raises:
            ValueError: A part of its path is too long, or in a folder that cannot be read.
        """
        try:
            self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise ValueError(
                f"output_dir must be a path that can be made, got {self.path}: {error.strerror}"
            ) from error

    def check_kinds(self) -> None:
        """Checks that what has the name of a file of a run is a file, and what has that of a folder is a folder.

        Raises:
            UsageError: Something else has the name. Writing would fail there, after steps were trained.
        """
        written = (self.config, self.metrics, self._origin)
        for path in (*written, *(file.with_suffix(".partial") for file in written), self.lock, self.plot):
            if path.is_dir():
                raise UsageError(f"{path} must be a file, got a folder: move it away")
        checkpoints = (path for path in self.path.glob("checkpoint-*") if re.fullmatch(_CHECKPOINT, path.name))
        for path in (self.model, self.partial_model, *checkpoints):
            if path.is_file():
                raise UsageError(f"{path} must be a folder, got a file: move it away")

    def is_empty(self) -> bool:
        """Returns whether the folder holds nothing, or only what a run leaves that was killed before it had begun."""

        def of_no_run(path: Path) -> bool:
            if path.name == "completions":  # TRL's, of log_completions
                return path.is_dir() and not any(path.iterdir())
            return path == self.lock or path == self.config.with_suffix(".partial")

        return not self.path.exists() or all(map(of_no_run, self.path.iterdir()))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder, and makes it if it does not exist.

        Raises:
            ValueError: Another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.lock, timeout=1):  # another may be looking whether it is free
                yield
        except Timeout:
            raise ValueError(f"another process trains in {self.path}") from None

    def check_unlocked(self) -> None:
        """Checks that no other process holds the folder, and makes nothing.

        Raises:
            ValueError: Another process holds it.
        """
        if self.lock.is_file():
            # A folder of somebody else's cannot be locked. What a run would write there fails by its name.
            with suppress(OSError), self.locked():
                pass

    def last_checkpoint(self) -> Path | None:
        """Returns the checkpoint of the highest step that was written to its end: trainer_state.json comes last.

        One of which a file was damaged since is returned as well, and refused by name when it is to be resumed.
        """
        found = [
            (int(match[1]), folder)
            for folder in self.path.glob("checkpoint-*")
            if (match := re.fullmatch(_CHECKPOINT, folder.name)) and _is_whole(folder / "trainer_state.json")
        ]
        return max(found)[1] if found else None

    def write_settings(self, settings: dict[str, Any]) -> None:
        """Writes config.yaml."""
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.config.with_suffix(".partial")
        partial.write_text(dump_yaml(settings, sort_keys=True), encoding="utf-8")
        partial.replace(self.config)

    def settings(self) -> dict[str, Any] | None:
        """Returns the settings that `write_settings` wrote, None if there is no config.yaml."""
        if not self.config.exists():
            return None
        return read_yaml(self.config)

    def write_origin(self, origin: dict[str, Any]) -> None:
        """Writes origin.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self._origin.with_suffix(".partial")
        partial.write_text(json.dumps(origin), encoding="utf-8")
        partial.replace(self._origin)

    def origin(self) -> dict[str, Any]:
        """Returns the origin that `write_origin` wrote, an empty dictionary for a run that began without one.

        Raises:
            UsageError: The file is damaged.
        """
        if not self._origin.exists():
            return {}
        text = _read(self._origin)
        remedy = "delete it to resume without knowing whether prompts and models are the same"
        try:
            origin = json.loads(text)
        except (ValueError, RecursionError):
            got = f"{text[:40]!r}" if text else "an empty file"
            raise UsageError(f"{self._origin} must be JSON, got {got}: {remedy}") from None
        if not isinstance(origin, dict):
            raise UsageError(f"{self._origin} must hold a JSON object, got {type(origin).__name__}: {remedy}")
        for name in ("processes", "rollouts_per_step"):
            if type(origin.get(name, 1)) is not int:
                raise UsageError(f"{self._origin}: {name} must be a whole number, got {origin[name]!r}: {remedy}")
        return origin

    def is_finished(self, *, with_curves: bool = False) -> bool:
        """Returns whether `model/` is that of the last step of the run that wrote it.

        Args:
            with_curves: Whether its card must also show the curves, if they can still be made without another step.
        """
        if state_fault(self.model / "trainer_state.json") is not None:
            return False
        state = json.loads((self.model / "trainer_state.json").read_text(encoding="utf-8"))
        if state["global_step"] < state["max_steps"] or not weight_files(self.model):
            return False
        if not with_curves or (self.model / f"curves{self.plot.suffix}").exists():
            return True
        last = self.last_checkpoint()
        may_be_made = last is not None and int(last.name.removeprefix("checkpoint-")) >= state["max_steps"]
        return not (may_be_made and has_curves(self.read_metrics()))

    def forget_finish(self) -> None:
        """Marks `model/` as not the run's last: the run continues to further steps."""
        (self.model / "trainer_state.json").unlink(missing_ok=True)

    @property
    def partial_model(self) -> Path:
        """The folder in which a model is written before `finish_model` makes it `model/`."""
        return self.path / "model.partial"

    def finish_model(self) -> None:
        """Puts `model.partial` in the place of `model/`."""
        if self.model.exists():
            shutil.rmtree(self.model)
        self.partial_model.replace(self.model)

    def read_metrics(self) -> list[Metrics]:
        """Returns the lines of metrics.jsonl in order, without a line that a kill cut short.

        Raises:
            UsageError: The file is damaged.
        """
        if not self.metrics.exists():
            return []
        lines = []
        for number, text in enumerate(_read(self.metrics).splitlines(), 1):
            try:
                line = json.loads(text)
            except (json.JSONDecodeError, RecursionError):
                if not text.strip() or text.startswith("{"):  # a kill leaves the beginning of a line
                    continue
                line = None
            if not isinstance(line, dict) or type(line.get("step")) is not int:
                raise UsageError(
                    f"{self.metrics} line {number} must hold metrics with a whole number as 'step', got {text[:60]!r}: "
                    "delete the line"
                )
            lines.append(line)
        return lines

    def append_metrics(self, line: Metrics) -> None:
        """Adds a line to metrics.jsonl."""
        with errors_of(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(_json_line(line))

    def forget_metrics_after(self, step: int) -> None:
        """Drops the lines of steps that a resumed run will take again, and the summary of a run that ended there."""
        kept = [line for line in self.read_metrics() if line["step"] <= step and "train_runtime" not in line]
        partial = self.metrics.with_suffix(".partial")
        partial.write_text("".join(map(_json_line, kept)), encoding="utf-8")
        partial.replace(self.metrics)


def has_curves(lines: list[Metrics]) -> bool:
    """Returns whether there is something to plot. A run of TRL's `beta` other than 1 logs no reverse KL."""
    return any("trb/reverse_kl" in line for line in lines)


@contextmanager
def left_as_it_was(folder: Path) -> Iterator[None]:
    """Removes, if the body raises, the empty folders that it made for `folder`.

    transformers makes the folder before it has checked everything.
    """
    before = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it holds something, or another process was faster
            while folder != before:
                folder.rmdir()
                folder = folder.parent
        raise


def _json_line(line: Metrics) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(finite) + "\n"


def _is_whole(path: Path) -> bool:
    """Returns whether a file of JSON was written to its end, whatever it holds."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    except (UnicodeDecodeError, RecursionError):  # a kill leaves no such file
        return True
    return True


def _read(path: Path) -> str:
    """Returns the text of a file; UsageError if there is none in it."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} must be UTF-8 text, got byte {error.object[error.start]:#04x} at {error.start}"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
