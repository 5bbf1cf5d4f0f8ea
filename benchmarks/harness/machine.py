"""Describes the machine that a benchmark ran on, and opens the console that it prints to."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

import trbext


@dataclass(frozen=True)
class Machine:
    """The machine that the numbers are from."""

    cpu: str
    cores: int  # that this process may use
    threads: int
    isa: str  # instruction set of the operators
    torch: str
    trbext: str
    load: float  # processes that wanted a core in the minute before; above 0.5 the numbers are noisy

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores, {self.threads} threads, torch {self.torch}, "
            f"trbext {self.trbext} ({self.isa}), load before {self.load:.1f}"
        )


def this_machine() -> Machine:
    """Returns the CPU, the versions and the load of this process's machine."""
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


def wide_console(width: int) -> Console:
    """Returns a console of the terminal's width, or of `width` columns if the output is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=width)
