"""Holds the latencies of a GPU's instructions: three sets of assumptions, one for slow double precision, or a probe's.

Nothing here was measured, unless `of_chip` read it from a file that benchmarks/chip_probe wrote on a GPU.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MEETING_BLOCKS = "6"  # of the chip probe's clusters, the size that holds a row of 151,936 tokens in bfloat16


@dataclass(frozen=True)
class Latencies:
    """Cycles until an instruction's result can be used. The defaults are the central assumptions."""

    integer_or_float: float = 4.5
    double: float = 8.0
    double_issue: float = 2.0  # cycles for which an instruction in double precision keeps its pipe
    double_conversion: float = 14.0
    double_division: float = 130.0  # a sequence of about 30 instructions, as are reciprocal and root
    float_division: float = 60.0  # rounded to nearest
    special_function: float = 22.0
    shared_load: float = 26.0
    device_load: float = 450.0
    shuffle: float = 24.0
    reduction: float = 20.0  # redux
    vote: float = 12.0
    branch: float = 8.0
    call: float = 20.0
    warp_barrier: float = 10.0
    block_barrier: float = 26.0
    fence: float = 400.0  # of the whole GPU, with the flush of the first-level cache
    cluster_barrier: float = 200.0
    async_exchange: float = 250.0  # from an asynchronous store to a peer until the peer's mbarrier lets it read


CENTRAL = Latencies()
OPTIMISTIC = Latencies(
    double=6.0,
    double_conversion=10.0,
    double_division=80.0,
    special_function=18.0,
    shared_load=23.0,
    branch=4.0,
    call=12.0,
    warp_barrier=6.0,
    fence=200.0,
    cluster_barrier=180.0,
    async_exchange=200.0,
)
PESSIMISTIC = Latencies(
    double=16.0,
    double_conversion=20.0,
    double_division=220.0,
    branch=12.0,
    call=30.0,
    warp_barrier=16.0,
    fence=700.0,
    cluster_barrier=220.0,
    async_exchange=400.0,
)
# GPUs with one double-precision lane for 64 of float32, such as Ada, RTX 50 and B300.
SLOW_DOUBLE = replace(CENTRAL, double=48.0, double_issue=16.0, double_conversion=48.0, double_division=900.0)
TABLES = {
    "optimistic": OPTIMISTIC,
    "central": CENTRAL,
    "pessimistic": PESSIMISTIC,
    "double at 1:64": SLOW_DOUBLE,
}


def of_chip(path: Path) -> Latencies:
    """Returns the central table with the latencies that the chip probe measured in the place of the assumed ones.

    Args:
        path: A file that benchmarks/chip_probe wrote.

    Raises:
        ValueError: The probe did not write the file; the message names what is missing.
    """
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        cycles = read["latency_cycles"]
        found = replace(
            CENTRAL,
            integer_or_float=cycles["ffma"],
            double=cycles["dfma"],
            double_conversion=cycles["double_cast"] / 2,  # the probe casts to float and back
            double_division=cycles["double_division"] - cycles["dfma"],  # its link has an addition too
            special_function=cycles["ex2"],
            shared_load=cycles["shared_load"],
            shuffle=cycles["shuffle"],
            reduction=cycles["redux"],
            block_barrier=cycles["syncthreads"],
        )
        if "meeting_cycles" not in read:  # a GPU without clusters
            return found
        meetings = {name: of_size[MEETING_BLOCKS] for name, of_size in read["meeting_cycles"].items()}
        barrier = meetings["cluster_barrier"]
        return replace(
            found,
            cluster_barrier=barrier,
            fence=max(0.0, meetings["store_and_cluster_barrier"] - barrier),
            async_exchange=meetings["async_store_and_mbarrier"],
        )
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} must be a file of the chip probe: {error}") from error
    except KeyError as error:
        raise ValueError(f"{path} must be a file of the chip probe, and has no {error}") from error
