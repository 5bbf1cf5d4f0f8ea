"""Implements setp, set, selp and slct."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..lanes import Lanes
from ..operands import Operands, Run
from ..rounding import flush_subnormals
from ..scalar_types import DTYPES
from .half_arithmetic import decode_half
from .registry import opcode

_COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_HALVES = ("f16", "bf16", "f16x2", "bf16x2")


def _comparison(name: str, is_float: bool) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Returns a comparison: ordered ones are false on NaN (numpy's `!=` is not), the `u` forms are true on NaN."""
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if is_float and name == "ne":
        return lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b))
    if is_float and name == "neu":
        return np.not_equal
    if is_float and len(name) == 3 and name.endswith("u"):
        opposite = {"eq": "ne", "lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}[name[:2]]
        ordered = _comparison(opposite, True)
        return lambda a, b: ~ordered(a, b)
    return _COMPARE[_UNSIGNED.get(name, name)]


def _compared(op: Operands, first: int, type_name: str) -> Callable[[Lanes], np.ndarray]:
    """Compares operands `first` and `first + 1`; a boolean op combines the result with the predicate after them."""
    is_float = type_name in _HALVES or DTYPES[type_name].kind == "f"
    compare = _comparison(op.modifiers[0], is_float)
    op.accept(op.modifiers[0])
    half = type_name in _HALVES
    bits = ("b32" if type_name.endswith("x2") else "b16") if half else type_name
    a, b = op.source(first, bits), op.source(first + 1, bits)
    flush = op.has("ftz") and type_name == "f32"

    def result(lanes: Lanes) -> np.ndarray:
        x, y = a[lanes.sel], b[lanes.sel]
        if half:
            x, y = (decode_half(np.ascontiguousarray(z).view(np.uint16), type_name) for z in (x, y))
        elif flush:
            x, y = flush_subnormals(x), flush_subnormals(y)
        return compare(x, y)

    if len(op) == first + 2:
        return result
    other = op.predicate(first + 2)
    combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[op.one_of("and", "or", "xor")]
    if type_name.endswith("x2"):
        return lambda lanes: combine(result(lanes), np.repeat(other(lanes), 2))
    return lambda lanes: combine(result(lanes), other(lanes))


for _family in ("int", "float", "half"):

    @opcode("setp", family=_family)
    def _setp(op: Operands) -> Run:
        result = _compared(op, 1, op.type)
        first, second = op.dest_pair(0, "pred")
        if op.type.endswith("x2"):

            def run_pair(lanes: Lanes) -> None:
                both = result(lanes)
                first[lanes.sel] = both[0::2]
                if second is not None:
                    second[lanes.sel] = both[1::2]

            return run_pair
        if second is not None and len(op) != 3:
            raise op.unknown()

        def run(lanes: Lanes) -> None:
            value = result(lanes)
            first[lanes.sel] = value
            if second is not None:
                second[lanes.sel] = ~value

        return run

    @opcode("set", family=_family)
    def _set(op: Operands) -> Run:
        types = [m for m in op.modifiers if m in DTYPES]
        if len(types) != 2:
            raise op.unknown()
        target, source = types
        result = _compared(op, 1, source)
        half = target in _HALVES
        packed = target.endswith("x2")
        d = op.dest(0, ("b32" if packed else "b16") if half else target)
        one = {"f16": 0x3C00, "bf16": 0x3F80}[target.removesuffix("x2")] if half else 1 if target == "f32" else -1

        def run(lanes: Lanes) -> None:
            value = np.where(result(lanes), one, 0)
            if packed:
                value = value.astype(np.uint16).view(np.uint32)
            d[lanes.sel] = value.astype(d.dtype)

        return run


@opcode("selp")
def _selp(op: Operands) -> Run:
    d, a, b, choose = op.dest(0), op.source(1), op.source(2), op.predicate(3)

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        d[s] = np.where(choose(lanes), a[s], b[s])

    return run


@opcode("slct")
def _slct(op: Operands) -> Run:
    """Selects a if c >= 0, else b (also for NaN)."""
    target, control = [m for m in op.modifiers if m in DTYPES]
    d, a, b, c = op.dest(0, target), op.source(1, target), op.source(2, target), op.source(3, control)

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        d[s] = np.where(c[s] >= 0, a[s], b[s])

    return run
