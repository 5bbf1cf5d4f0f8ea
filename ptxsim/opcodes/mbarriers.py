"""Implements mbarrier: its initialization, arrivals, expected bytes and waits. Scopes and orders are not told apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..lanes import Lanes
from ..operands import Operands, Run
from .registry import Next, control, opcode

_SPACES = ("shared", "shared::cta", "shared::cluster")
_SEMANTICS = ("acquire", "release", "relaxed", "cta", "cluster")


def find_mbarrier(op: Operands, operand: int, kind: str) -> Callable[[Lanes], np.ndarray]:
    """Returns the places of the mbarriers at an address, after the checks of an access of that kind."""
    address = op.address_source(operand)
    shared, instruction = op.machine.shared, op.instruction
    return lambda lanes: shared.access(lanes, address(lanes), 8, instruction, kind)


@opcode("mbarrier.init", "mbarrier.inval")
def _initialize(op: Operands) -> Run:
    op.accept("init", "inval", *_SPACES)
    mbarriers, instruction = op.machine.mbarriers, op.instruction
    find = find_mbarrier(op, 0, "store")
    if op.has("inval"):
        return lambda lanes: mbarriers.invalidate(lanes, find(lanes), instruction)
    count = op.source(1, "u32")
    return lambda lanes: mbarriers.initialize(lanes, find(lanes), count[lanes.sel], instruction)


@opcode("mbarrier.expect_tx")
def _expect(op: Operands) -> Run:
    op.accept("expect_tx", *_SPACES, *_SEMANTICS)
    mbarriers, instruction = op.machine.mbarriers, op.instruction
    find, expected = find_mbarrier(op, 0, "atomic"), op.source(1, "u32")
    return lambda lanes: mbarriers.expect(lanes, find(lanes), expected[lanes.sel], instruction)


@opcode("mbarrier.arrive")
def _arrive(op: Operands) -> Run:
    """Implements mbarrier.arrive{.expect_tx} with a state or `_`, or with neither for another block's mbarrier."""
    op.accept("arrive", "expect_tx", *_SPACES, *_SEMANTICS)
    mbarriers, instruction = op.machine.mbarriers, op.instruction
    at = 0 if op[0].startswith("[") else 1
    state = op.dest(0, "u64") if at == 1 and op[0] != "_" else None
    find = find_mbarrier(op, at, "atomic")
    number = op.source(at + 1, "u32") if len(op) > at + 1 else op.source("1", "u32")
    expects = op.has("expect_tx")
    if expects and len(op) == at + 1:
        raise op.unknown()

    def run(lanes: Lanes) -> None:
        given = number[lanes.sel]
        one, none = np.ones(lanes.count, np.int64), np.zeros(lanes.count, np.int64)
        count, expected = (one, given) if expects else (given, none)
        phases = mbarriers.arrive(lanes, find(lanes), count, expected, instruction)
        if state is not None:
            state[lanes.sel] = phases

    return run


@control("mbarrier.wait")
def _wait(op: Operands) -> Callable[[Lanes], Next]:
    """Implements mbarrier.test_wait and .try_wait{.parity}, whose last operand may be a time."""
    op.accept("test_wait", "try_wait", *_SPACES, *_SEMANTICS)
    is_parity = op.has("parity")
    machine, pc = op.machine, op.pc
    result = op.dest(0, "pred")
    find = find_mbarrier(op, 1, "atomic")
    phase = op.source(2, "u32" if is_parity else "u64")

    def leave(lanes: Lanes) -> Next:
        return machine.mbarriers.wait(pc, lanes, find(lanes), phase[lanes.sel].astype(np.int64), is_parity, result)

    return leave
