"""Implements atom and red on global and shared memory. The lanes of an instruction access memory in ascending order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..lanes import Lanes
from ..operands import Operands, Run
from ..scalar_types import DTYPES
from .memory_access import check_modifiers, places
from .registry import opcode

_SPACES = ("global", "shared", "shared::cta", "shared::cluster")
_UFUNCS: dict[str, np.ufunc] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _one_by_one(name: str) -> Callable[..., object]:
    """Makes a function that computes each new value as f(old, b, c)."""
    if name in _UFUNCS:
        ufunc = _UFUNCS[name]
        return lambda old, b, c: ufunc(old, b)
    return {
        "exch": lambda old, b, c: b,
        "cas": lambda old, b, c: c if old == b else old,
        "inc": lambda old, b, c: 0 if old >= b else old + type(old)(1),
        "dec": lambda old, b, c: b if old == 0 or old > b else old - type(old)(1),
    }[name]


@opcode("atom", "red")
def _atomic(op: Operands) -> Run:
    # 1. Check the form, and find the operands.
    name = op.one_of(*_UFUNCS, "exch", "cas", "inc", "dec")
    check_modifiers(op, {*_SPACES, *_UFUNCS, "exch", "cas", "inc", "dec"})
    if op.type.startswith(("f16", "bf16")) or (op.type[0] == "f" and name in ("min", "max")):
        raise op.unknown()
    dtype = DTYPES[op.type]
    first = 1 if op.opcode == "atom" else 0
    d = op.dest(0) if op.opcode == "atom" else None
    if d is not None and op[0] == "_":
        d = None
    find = places(op, op.one_of(*_SPACES, default="generic"), dtype.itemsize, "atomic")
    address, b = op.address_source(first), op.source(first + 1)
    c = op.source(first + 2) if name == "cas" else b
    update = _one_by_one(name)

    # 2. Update the memory: at once if the old values are not needed, else in the order of the lanes.
    def run(lanes: Lanes) -> None:
        for some, _, views, offset in find(lanes, address(lanes)):
            s = some.sel
            memory = views[dtype.itemsize].view(dtype)
            place, x = offset // dtype.itemsize, b[s]
            if d is None and name in _UFUNCS:
                _UFUNCS[name].at(memory, place, x)
                continue
            y = c[s]
            old = np.empty(some.count, dtype)
            for i, p in enumerate(place.tolist()):
                old[i] = memory[p]
                memory[p] = update(memory[p], x[i], y[i])
            if d is not None:
                d[s] = old

    return run
