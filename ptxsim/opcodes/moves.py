"""Implements mov, and instructions without effect on results."""

from __future__ import annotations

import numpy as np

from ..lanes import Lanes
from ..operands import Operands, Run
from ..scalar_types import DTYPES, UNSIGNED
from .registry import opcode


@opcode("mov")
@opcode("mov", family="pred")
def _mov(op: Operands) -> Run:
    if op[0].startswith("{"):
        return _unpack(op)
    if op[1].startswith("{"):
        return _pack(op)
    d, a = op.dest(0), op.source(1)

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        d[s] = a[s]

    return run


def _part_type(op: Operands, parts: int) -> str:
    return f"b{8 * DTYPES[op.type].itemsize // parts}"


def _unpack(op: Operands) -> Run:
    names = op.elements(0)
    part = _part_type(op, len(names))
    wide = op.source(1, f"b{8 * DTYPES[op.type].itemsize}")
    bits = DTYPES[part].itemsize * 8
    dests = [(i * bits, op.dest(name, part)) for i, name in enumerate(names) if name != "_"]
    narrow = UNSIGNED[bits // 8]

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        value = wide[s]
        for shift, d in dests:
            d[s] = (value >> value.dtype.type(shift)).astype(narrow)

    return run


def _pack(op: Operands) -> Run:
    names = op.elements(1)
    part = _part_type(op, len(names))
    d = op.dest(0, f"b{8 * DTYPES[op.type].itemsize}")
    bits = DTYPES[part].itemsize * 8
    sources = [op.source(name, part) for name in names]

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        total = sources[0][s].astype(d.dtype)
        for i, source in enumerate(sources[1:], 1):
            total |= source[s].astype(d.dtype) << d.dtype.type(i * bits)
        d[s] = total

    return run


@opcode("membar", "griddepcontrol", "nanosleep", "setmaxnreg", "applypriority")
def _nothing(op: Operands) -> Run:
    """Does nothing, because memory is sequentially consistent here and time does not pass."""
    op.accept(*op.modifiers)
    return lambda lanes: None


@opcode("fence")
def _fence(op: Operands) -> Run:
    """Orders an mbarrier's initialization before its use by other blocks, and does nothing else.

    All other accesses are in one proxy here.
    """
    if op.has("proxy") and not op.has("async"):
        raise op.unknown()
    op.accept(*op.modifiers)
    if op.has("mbarrier_init"):
        return op.machine.mbarriers.fence
    return lambda lanes: None


@opcode("createpolicy")
def _createpolicy(op: Operands) -> Run:
    """Gives any number, because a cache policy is only a hint."""
    op.accept(*op.modifiers)
    d = op.dest(0, "b64")

    def run(lanes: Lanes) -> None:
        d[lanes.sel] = np.uint64(0)

    return run
