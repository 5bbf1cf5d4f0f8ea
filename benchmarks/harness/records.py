"""Writes the records of a benchmark as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any


def write_csv(
    records: Sequence[Any],
    path: Path,
    *,
    machine: Any = None,
    first: Mapping[str, Any] | None = None,
) -> None:
    """Writes a line per record.

    Args:
        records: Dataclass instances, all of one class, at least one; a column per field.
        path: The file to write.
        machine: Dataclass instance whose fields end every line.
        first: Columns that begin every line.
    """
    last = {} if machine is None else asdict(machine)
    lines = [{**(first or {}), **asdict(record), **last} for record in records]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
