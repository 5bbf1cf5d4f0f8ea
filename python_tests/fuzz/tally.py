"""Keeps what a run has found so far in a file from which the run continues."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .random_rows import Batch

KEPT = 8  # rows of each kind of fault


@dataclass
class Tally:
    seed: int
    widest: int
    batches: int = 0  # done; the next one has this number
    rows: int = 0
    verified: int = 0
    wide_rows: int = 0  # of 8192 tokens and more
    faults: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, batch: Batch, found: dict[str, Tensor], verified: int) -> None:
        self.batches += 1
        self.rows += len(batch)
        self.verified += verified
        self.wide_rows += len(batch) * (batch.vocab >= 8192)
        for kind, where in found.items():
            rows = where.nonzero()[:, 0].tolist()
            self.faults[kind] = self.faults.get(kind, 0) + len(rows)
            kept = self.examples.setdefault(kind, [])
            kept += [_example(batch, row) for row in rows[: KEPT - len(kept)]]

    @property
    def total(self) -> int:
        return sum(self.faults.values())

    def report(self) -> str:
        """Returns the counts, with the faults and the seed at the end, which a shortened log keeps."""
        lines = []
        for kind, count in sorted(self.faults.items(), key=lambda item: (item[1], item[0])):
            lines.append(f"  {count:8,}  {kind}")
            lines += [f"            {json.dumps(example)}" for example in self.examples[kind]]
        summary = (
            f"{self.rows:,} rows ({self.wide_rows:,} of at least 8,192 tokens), {self.verified:,} of them verified, "
            f"seed {self.seed}, {self.batches} batches: {self.total} faults"
        )
        return "\n".join([*lines, summary])

    def save(self, path: Path) -> None:
        # NaN is written as such. The file is renamed into place: a file half written must not lose hours.
        partial = path.with_suffix(path.suffix + ".partial")
        partial.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Tally:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def _example(batch: Batch, row: int) -> dict[str, Any]:
    """Returns where to find the row again, and the row itself if it is short."""
    example: dict[str, Any] = {
        "batch": batch.number,
        "row": row,
        "family": batch.family[row],
        "vocab": batch.vocab,
        "dtypes": [str(logits.dtype).removeprefix("torch.") for logits in (batch.student, batch.teacher)],
        "epsilon": batch.epsilon[row].item(),
        "temperature": batch.temperature,
        "uniform": batch.uniform[row].item(),
    }
    if batch.vocab <= 16:
        example |= {"student": batch.student[row].tolist(), "teacher": batch.teacher[row].tolist()}
    return example
