"""What a benchmark found: one record per method and case, the machine it ran on, and the CSV file of both."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

import trbext

OPERATORS = ("solve", "sample", "blend")
FLOORS = ("read", "fill", "new fill")
PEERS = (
    "2 log_softmax",
    "Newton 10",
    "Newton stop",
    "Newton compiled",
    "bisection 16",
    "bisection 50",
    "brentq",
)
METHODS = (*FLOORS, *OPERATORS, *PEERS)


@dataclass(frozen=True)
class Case:
    """Logits [rows, vocab] of one dtype."""

    inputs: str  # "synthetic" or "SmolLM2"
    vocab: int
    rows: int
    dtype: str


@dataclass(frozen=True)
class Record:
    """One method in one case."""

    inputs: str
    vocab: int
    rows: int
    dtype: str
    budget: str  # "binding", "not binding", or "any" for a method whose time does not depend on it
    epsilon: float | None  # nats
    method: str
    median_s: float | None  # seconds a call; None where the method was left out
    fastest_s: float | None
    repetitions: int
    us_per_row: float | None
    gb_per_s: float | None  # of FLOORS alone
    sweeps_mean: float | None  # of the rows, where the method is an operator
    sweeps_max: int | None
    note: str

    @property
    def case(self) -> Case:
        return Case(self.inputs, self.vocab, self.rows, self.dtype)


@dataclass(frozen=True)
class Machine:
    """Where the numbers are from."""

    cpu: str
    cores: int  # this process may use
    threads: int
    isa: str  # the operator's
    torch: str
    trbext: str
    load: float  # processes that wanted a core in the minute before; above 0.5 the numbers are noisy

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores, {self.threads} threads, torch {self.torch}, "
            f"trbext {self.trbext} ({self.isa}), load before {self.load:.1f}"
        )


def this_machine() -> Machine:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        cpu,
        cores,
        torch.get_num_threads(),
        str(trbext._C.cpu_isa),
        torch.__version__,
        trbext.__version__,
        os.getloadavg()[0],
    )


def median(records: Iterable[Record], case: Case, method: str, budget: str = "binding") -> float | None:
    """Seconds a call of `method`, None where it was not measured."""
    if method not in METHODS:
        raise KeyError(method)
    found = [r for r in records if r.case == case and r.method == method and r.budget in (budget, "any")]
    return found[0].median_s if found else None


def write_csv(records: Sequence[Any], machine: Any, path: Path) -> None:
    """One line per record, and the machine on each: dataclasses, all records of one class."""
    where = asdict(machine)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*(field.name for field in fields(records[0])), *where])
        writer.writeheader()
        writer.writerows({**asdict(record), **where} for record in records)
