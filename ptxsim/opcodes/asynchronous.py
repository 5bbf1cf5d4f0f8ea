"""Implements st.async and cp.async.bulk, whose bytes an mbarrier counts, and the bulk prefetch."""

from __future__ import annotations

import numpy as np

from ..lanes import Lanes
from ..operands import Operands, Run
from ..scalar_types import DTYPES, UNSIGNED
from .mbarriers import find_mbarrier
from .registry import opcode

_COMPLETES = "mbarrier::complete_tx::bytes"
_VECTOR = 16  # bytes: the unit of bulk operations


@opcode("st.async")
def _store(op: Operands) -> Run:
    """Implements `st.async.shared::cluster.mbarrier::complete_tx::bytes{.v2|.v4}.type [address], value, [mbarrier]`."""
    op.accept("async", "weak", "shared::cluster", "v2", "v4")
    if not op.has(_COMPLETES) or not op.has("shared::cluster"):
        raise op.unknown()
    names = op.elements(1)
    sources = [op.source(name) for name in names]
    width = DTYPES[op.type].itemsize
    unsigned, whole = UNSIGNED[width], width * len(names)
    address, find = op.address_source(0), find_mbarrier(op, 2, "async atomic")
    machine, instruction = op.machine, op.instruction

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        first = machine.shared.access(lanes, address(lanes), whole, instruction, "async store") // width
        for part, source in enumerate(sources):
            machine.shared.views[width][first + part] = source[s].view(unsigned)
        machine.mbarriers.complete(lanes, find(lanes), np.full(lanes.count, whole), instruction)

    return run


@opcode("cp.async.bulk")
def _bulk(op: Operands) -> Run:
    if op.has("prefetch"):
        return _bulk_prefetch(op)
    return _bulk_copy(op)


def _bulk_copy(op: Operands) -> Run:
    """Implements `cp.async.bulk` from global to shared memory: `[to], [from], size, [mbarrier]`."""
    op.accept("async", "bulk")
    spaces = ("shared::cta", "shared::cluster")
    if not (op.has(*spaces) and op.has("global") and op.has(_COMPLETES)) or len(op) != 4:
        raise op.unknown()
    to, source, size = op.address_source(0), op.address_source(1), op.source(2, "u32")
    find = find_mbarrier(op, 3, "async atomic")
    machine, instruction = op.machine, op.instruction

    def run(lanes: Lanes) -> None:
        written = size[lanes.sel].astype(np.int64)
        first, origin = to(lanes), source(lanes)
        if _misaligned(op, lanes, first | origin | written):
            return
        for i in np.flatnonzero(written):
            offset = np.arange(0, written[i], _VECTOR)
            copier = Lanes(lanes.geometry, np.full(len(offset), lanes.index[i]))
            at = machine.global_memory.access(copier, origin[i] + offset, _VECTOR, instruction, "load") // 8
            place = machine.shared.access(copier, first[i] + offset, _VECTOR, instruction, "async store") // 8
            for part in range(_VECTOR // 8):
                machine.shared.views[8][place + part] = machine.device.views[8][at + part]
        machine.mbarriers.complete(lanes, find(lanes), written, instruction)

    return run


def _bulk_prefetch(op: Operands) -> Run:
    """Implements `cp.async.bulk.prefetch.L2.global [address], size`: it checks that the bytes exist, in sixteens."""
    if not op.has("global"):
        raise op.unknown()
    op.accept("async", "bulk", "prefetch", "L2", "L2::cache_hint")
    address, size = op.address_source(0), op.source(1, "u32")
    machine, instruction = op.machine, op.instruction

    def run(lanes: Lanes) -> None:
        first, count = address(lanes), size[lanes.sel].astype(np.int64)
        _misaligned(op, lanes, first | count)
        some = count > 0
        if some.any():
            within = lanes.where(some)
            machine.global_memory.access(within, first[some], 1, instruction, "prefetch")
            machine.global_memory.access(within, (first + count - 1)[some], 1, instruction, "prefetch")

    return run


def _misaligned(op: Operands, lanes: Lanes, values: np.ndarray) -> bool:
    """Reports the first lane with an address or a size that is not a multiple of 16."""
    wrong = values & (_VECTOR - 1) != 0
    if wrong.any():
        where = op.machine.name_lane(int(lanes.index[np.argmax(wrong)]))
        message = f"{where}: addresses and size must be multiples of {_VECTOR}"
        op.machine.findings.add("misaligned", op.instruction, message, int(wrong.sum()))
    return bool(wrong.any())
