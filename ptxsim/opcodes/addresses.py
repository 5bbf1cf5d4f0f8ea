"""Implements generic addresses, the windows of other state spaces, addresses of other blocks, and prefetches."""

from __future__ import annotations

import numpy as np

from ..lanes import Lanes
from ..memory.shared_memory import RANK_SHIFT
from ..operands import Operands, Run
from ..state import LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW
from .registry import opcode

_WINDOWS = {
    "shared": SHARED_WINDOW,
    "shared::cta": SHARED_WINDOW,
    "shared::cluster": SHARED_WINDOW,
    "local": LOCAL_WINDOW,
    "param": PARAM_WINDOW,
    "global": 0,
    "const": 0,
}


@opcode("cvta")
def _cvta(op: Operands) -> Run:
    window = np.uint64(_WINDOWS[op.one_of(*_WINDOWS)])
    d, a = op.dest(0, "u64"), op.source(1, "u64")
    to_space = op.has("to")

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        d[s] = a[s] - window if to_space else a[s] + window

    return run


@opcode("isspacep")
def _isspacep(op: Operands) -> Run:
    space = op.one_of(*_WINDOWS)
    d, a = op.dest(0, "pred"), op.source(1, "u64")

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        address = a[s]
        if space in ("global", "const"):
            d[s] = address < SHARED_WINDOW
        elif space == "shared::cta":
            d[s] = (address >= SHARED_WINDOW) & (address < SHARED_WINDOW + (1 << RANK_SHIFT))
        else:
            low = np.uint64(_WINDOWS[space])
            d[s] = (address >= low) & (address < low * np.uint64(2))

    return run


@opcode("mapa")
def _mapa(op: Operands) -> Run:
    """Returns the address of the same variable in another block of the cluster."""
    window = np.uint64(0 if op.has("shared::cluster") else SHARED_WINDOW)
    dtype = op.type
    d, a, rank = op.dest(0, dtype), op.source(1, dtype), op.source(2, "u32")
    low = np.uint64((1 << RANK_SHIFT) - 1)

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        offset = a[s].astype(np.uint64) & low
        mapped = (rank[s].astype(np.uint64) + np.uint64(1)) << np.uint64(RANK_SHIFT) | offset | window
        d[s] = mapped.astype(d.dtype)

    return run


@opcode("getctarank")
def _getctarank(op: Operands) -> Run:
    d, a = op.dest(0, "u32"), op.source(1, op.type)
    own = op.source("%cluster_ctarank", "u32")

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        rank = (a[s].astype(np.uint64) & np.uint64(SHARED_WINDOW - 1)) >> np.uint64(RANK_SHIFT)
        d[s] = np.where(rank > 0, rank - np.uint64(1), own[s]).astype(np.uint32)

    return run


@opcode("prefetch", "prefetchu")
def _prefetch(op: Operands) -> Run:
    """Has no effect, but the address must lie in an allocation."""
    op.accept("global", "L1", "L2", "L2::evict_last", "L2::evict_normal")
    address = op.address_source(0)
    machine, instruction = op.machine, op.instruction

    def run(lanes: Lanes) -> None:
        machine.global_memory.access(lanes, address(lanes), 1, instruction, "prefetch")

    return run
