"""A run on disk, and how it resumes: `config.yaml`, `metrics.jsonl`, `checkpoint-N/`, `plot.png`, the trained `model/`.

A killed process may leave a half-written checkpoint or metrics line behind; neither is ever read as if it were whole.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .yaml_file import dump_yaml, read_yaml

Metrics = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """Paths and contents of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def plot(self) -> Path:
        return self.path / "plot.png"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def is_empty(self) -> bool:
        return not self.path.exists() or not any(self.path.iterdir())

    def last_checkpoint(self) -> Path | None:
        """The complete checkpoint of the highest step: the trainer writes trainer_state.json last."""
        found = [
            (int(match[1]), folder)
            for folder in self.path.glob("checkpoint-*")
            if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and _is_json(folder / "trainer_state.json")
        ]
        return max(found)[1] if found else None

    def write_settings(self, settings: dict[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.config.write_text(dump_yaml(settings, sort_keys=True), encoding="utf-8")

    def settings(self) -> dict[str, Any] | None:
        """What `write_settings` wrote; None where there is no config.yaml."""
        if not self.config.exists():
            return None
        return read_yaml(self.config)

    def read_metrics(self) -> list[Metrics]:
        """The lines of metrics.jsonl in order, without one that a kill cut short."""
        if not self.metrics.exists():
            return []
        lines = []
        for text in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return lines

    def append_metrics(self, line: Metrics) -> None:
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(_json_line(line))

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that a resumed run will take again."""
        kept = [line for line in self.read_metrics() if line["step"] <= step]
        partial = self.metrics.with_suffix(".partial")
        partial.write_text("".join(map(_json_line, kept)), encoding="utf-8")
        partial.replace(self.metrics)


@contextmanager
def left_as_it_was(folder: Path) -> Iterator[None]:
    """Removes, if the body raises, the empty folders that it made for `folder`: transformers makes one before it has
    looked at everything."""
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


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return True
