"""Holds the counts behind the model of the kernels' speed: the instructions of their loops, and their costs on a GPU.

Instructions are those of the machine code (SASS) for bfloat16, as `python -m benchmarks.models.row_instructions` counts
them in the shipped kernel, in its loops per pair of logits (one token of both models);
`python_tests/cuda/test_decision_cycles.py` keeps the two equal. sm_80 and sm_120 are taken to be as sm_90. The counts
of the GPU are assumptions until `benchmarks/chip_probe` and `benchmarks/first_light.sh` have written a file about it
(`read_chip`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .cuda_architectures import ISSUE_SLOTS, WARP, Architecture


@dataclass(frozen=True)
class Loop:
    """Instructions of one loop over a row, per pair of logits."""

    issue: float  # instructions of any kind: each takes an issue slot
    mufu: float = 0.0  # exponentials among them
    fp32: float = 0.0  # operations in float32, of which an instruction on a packed pair is assumed to take two turns


@dataclass(frozen=True)
class Counts:
    """The work per row: one load with its scan, the first sweep, and an exact sweep for each further one.

    Between two sweeps lies a decision, for which all CTAs of the row wait.
    """

    load: Loop = Loop(2.88)  # device memory to shared memory, with both maxima
    first: Loop = Loop(18.12, mufu=2, fp32=13)  # power sums at two betas
    direct: Loop = Loop(14.12, mufu=1, fp32=10)  # an exact sweep, of ordinary budgets
    stable: Loop = Loop(30.25, mufu=2, fp32=23)  # the same without cancellation, of budgets below about 0.015 nats
    # From the last pair of a sweep to the first of the next or to the answer: reduction, exchange, search. The mean of
    # a row's two decisions at the central latencies, as `python -m benchmarks.models.decision_trace` estimates them;
    # `python_tests/cuda/test_decision_cycles.py` keeps the two equal.
    decision_cycles: float = 1633.0
    # What else warp 0 executes between the loops of a row, by the same estimate: from an answer to the next load, and
    # from the last load to the first sweep.
    row_cycles: float = 1172.0
    # Instructions of all warps of a CTA per row outside the loops. They take issue slots from the other CTAs of the SM;
    # their own time is in the two numbers above.
    row_instructions: float = 6347.0


MEASURED = Counts()
# The sweeps of sm_100 add two tokens at once. Its load is that of `python -m python_tests.cuda.sass_tables`, because
# ptxas makes two copies of the loop, and a line of the PTX does not tell which of them runs.
MEASURED_SM_100 = replace(
    MEASURED,
    load=Loop(2.62),
    first=Loop(11.75, mufu=2, fp32=13),
    direct=Loop(9.25, mufu=1, fp32=10),
    stable=Loop(30.38, mufu=2, fp32=23),
    row_instructions=6803.0,
)


def counts_of(capability: str) -> Counts:
    """Returns the counts of the kernels for a compute capability such as "90"."""
    return MEASURED_SM_100 if capability in ("100", "103") else MEASURED


@dataclass(frozen=True)
class Chip:
    """Costs of a GPU. The defaults are assumptions."""

    issue_efficiency: tuple[float, ...] = (
        0.75,
        0.75,
    )  # part of its issue slots that a sweep fills, with 1, 2 CTAs per SM
    mufu_efficiency: float = 0.9
    # Cycles from the request of a row to its first byte, and then bytes per cycle of a single SM: from device memory,
    # and from L2 if the row was prefetched to it. Both while nothing else is read.
    load_cycles: float = 1200.0
    load_rate: float = 32.0
    prefetched_cycles: float = 600.0
    prefetched_rate: float = 48.0
    launch_us: float = 3.0

    def issue_efficiency_of(self, ctas_per_sm: int) -> float:
        """Returns the part of its issue slots that a sweep fills with so many CTAs per SM."""
        return self.issue_efficiency[min(ctas_per_sm, len(self.issue_efficiency)) - 1]


ASSUMED = Chip()


def read_chip(path: Path) -> tuple[Architecture, Chip, Counts]:
    """Reads the GPU that a file of the chip probe describes, and how long its decisions last if first light timed them.

    Args:
        path: The file of the chip probe.

    Returns:
        The GPU, its costs and the counts of the kernels.

    Raises:
        ValueError: The probe did not write the file; the message names what is missing.
    """
    # 1. Read the GPU and its costs.
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        stream, sweeps = read["stream"], read["sweep_cycles_per_pair"]
        shared = int(read["shared_bytes_per_multiprocessor"])
        at_once = {int(kilobytes): tuple(counts) for kilobytes, counts in read.get("clusters_at_once", {}).items()}
        architecture = Architecture(
            name=read["gpu"],
            capability=read["capability"],
            gpcs=(int(read["multiprocessors"]),),
            clock_ghz=read["clock_ghz"],
            fp32_lanes=64 if read["capability"] == "80" else 128,
            memory_gb_per_s=read["copy_gb_per_s"],
            cache_gb_per_s=stream["every_multiprocessor"]["gb_per_s"],
            shared_sm=shared,
            shared_cta=shared - 1024,
            largest_cluster=16 if int(read["capability"]) >= 90 else 1,
            clusters_at_once=at_once,
        )
        counted = counts_of(architecture.capability)
        chip = Chip(
            issue_efficiency=tuple(_issue_efficiency(counted, sweeps[str(ctas)], ctas) for ctas in (1, 2)),
            load_cycles=stream["device"]["start_cycles"],
            load_rate=stream["device"]["bytes_per_cycle"],
            prefetched_cycles=stream["cache"]["start_cycles"],
            prefetched_rate=stream["cache"]["bytes_per_cycle"],
            launch_us=read["launch_us"],
        )
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} must be a file of the chip probe: {error}") from error
    except KeyError as error:
        raise ValueError(f"{path} must be a file of the chip probe, and has no {error}") from error
    # 2. Keep the assumed decisions if no row was timed.
    decision = read.get("decision", {})
    if not decision:
        return architecture, chip, counted
    # 3. Otherwise take what is left of the timed row for its decisions.
    cycles = (decision["solve_us"] - decision["empty_launch_us"]) * 1e3 * architecture.clock_ghz
    # The parts of the timed row that the model counts elsewhere: its loads, and what warp 0 does besides deciding.
    waited = read["load_latency_cycles"]["cache"]
    counts = replace(counted, decision_cycles=(cycles - waited - counted.row_cycles) / decision["sweeps"])
    return architecture, replace(chip, launch_us=decision["empty_launch_us"]), counts


def _issue_efficiency(counts: Counts, cycles: dict[str, float], ctas: int) -> float:
    """Returns the efficiency of the first and the direct sweep together."""
    issued = ctas * (counts.first.issue + counts.direct.issue) / WARP
    return issued / (ISSUE_SLOTS * (cycles["first"] + cycles["direct"]))
