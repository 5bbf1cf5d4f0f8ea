"""Keeps beside verl's checkpoint what a resumed run must have again: the schedule, and the very same teacher."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .settings import RolloutSettings

FILE = "trb.json"


@dataclass(frozen=True)
class CheckpointRecord:
    """What the budgets of a run follow from. verl keeps the step and the place in the prompts."""

    schedule: dict[str, Any]
    teacher: str  # its path, for messages
    teacher_digests: list[str]  # of each worker's part

    @classmethod
    def of(cls, settings: RolloutSettings, teacher_digests: Sequence[str]) -> CheckpointRecord:
        """Returns that of a run with these settings."""
        schedule = json.loads(json.dumps(dataclasses.asdict(settings.schedule)))  # lists for tuples, as it is read
        return cls(schedule, settings.teacher, list(teacher_digests))

    def write(self, folder: str) -> None:
        """Writes it into the folder of a checkpoint, which is made if need be."""
        file = Path(folder) / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: str) -> CheckpointRecord:
        """Reads it.

        Raises:
            ValueError: The checkpoint has none.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            raise ValueError(f"{folder} must be a checkpoint of a run with TRB, got none with {FILE}")
        return cls(**json.loads(file.read_text(encoding="utf-8")))

    def check(self, now: CheckpointRecord) -> None:
        """Checks that a run continues with what it had.

        Args:
            now: Of the run that continues.

        Raises:
            ValueError: Its schedule or its teacher is another.
        """
        if now.schedule != self.schedule:
            raise ValueError(f"a resumed run must have the schedule {self.schedule}, got {now.schedule}")
        # Another number of workers has other parts of the teacher, which cannot be compared.
        if len(now.teacher_digests) == len(self.teacher_digests) and now.teacher_digests != self.teacher_digests:
            raise ValueError(f"a resumed run must have the teacher that it had, {self.teacher}, got other weights")
