"""Writes one Markdown file from the results of the stages in DIR: `python -m benchmarks.first_light.report DIR`.

It needs nothing but Python, so that a failed build is reported too.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

LINES = {"ncu_text": 2000, "device_tests": 120, "operator_tests": 120}  # lines kept of a log's end; else 80
MARKDOWN = ("smoke", "time")  # stages that print Markdown
WIDEST = 240


@dataclass(frozen=True)
class Stage:
    """A line of stages.tsv, which the script writes."""

    name: str
    outcome: str  # ok, failed (N), too slow, left out: why
    seconds: int
    limit: int


def write(output: Path) -> Path:
    """Writes `<device>.md` into `output` from stages.tsv and logs/, and returns its path."""
    stages = [_stage(line) for line in (output / "stages.tsv").read_text(encoding="utf-8").splitlines()]
    gpu = (output / "gpu.txt").read_text(encoding="utf-8").strip()
    path = output / f"{slug(gpu)}.md"
    parts = [f"# First light: {gpu}\n", "`bash benchmarks/first_light.sh` printed what follows; nothing is left out "
             "but the middles of long logs.\n", table(stages)]  # fmt: skip
    for stage in stages:
        log = output / "logs" / f"{stage.name}.log"
        if log.exists() and (text := _end_of(log, LINES.get(stage.name, 80))):
            body = text if stage.name in MARKDOWN else f"```text\n{text}\n```"
            parts.append(f"## {stage.name}\n\n{body}\n")
    chip = output / "chip.json"
    if chip.exists():
        parts.append(f"## chip.json\n\n```json\n{chip.read_text(encoding='utf-8').strip()}\n```\n")
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def table(stages: list[Stage]) -> str:
    """Returns the stages as a Markdown table."""
    lines = ["| stage | outcome | seconds | of at most |", "|---|---|---|---|"]
    lines += [f"| {s.name} | {s.outcome} | {s.seconds} | {s.limit} |" for s in stages]
    return "\n".join(lines) + "\n"


def slug(gpu: str) -> str:
    """Returns the file name of a device: "NVIDIA H100 80GB HBM3" -> nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") or "device"


def _stage(line: str) -> Stage:
    name, outcome, seconds, limit = line.split("\t")
    return Stage(name, outcome, int(seconds), int(limit))


def _end_of(log: Path, lines: int) -> str:
    kept = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    cut = [f"[{len(kept) - lines} lines before]"] if len(kept) > lines else []
    return "\n".join(cut + [line[:WIDEST] for line in kept[-lines:]])


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
