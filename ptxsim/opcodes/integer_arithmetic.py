"""Implements integer arithmetic, which wraps modulo the width, as numpy's does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..lanes import Lanes
from ..operands import Operands, Run
from ..scalar_types import DTYPES, SIGNED, UNSIGNED
from .registry import opcode


def _wide_type(type_name: str) -> str:
    return f"{type_name[0]}{16 * DTYPES[type_name].itemsize}"


def _high_u64(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    a_high, a_low, b_high, b_low = a >> half, a & mask, b >> half, b & mask
    middle = a_high * b_low + (a_low * b_low >> half)
    other = a_low * b_high + (middle & mask)
    return a_high * b_high + (middle >> half) + (other >> half)


def multiply_high(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the upper half of the product."""
    width = a.dtype.itemsize
    if width < 8:
        wide = (SIGNED if a.dtype.kind == "i" else UNSIGNED)[2 * width]
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(8 * width)).astype(a.dtype)
    high = _high_u64(a.astype(np.uint64), b.astype(np.uint64)).view(a.dtype)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, b, 0) - np.where(b < 0, a, 0)
    return high


def _saturated(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    limits = np.iinfo(np.int32)

    def run(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.clip(function(a.astype(np.int64), b.astype(np.int64)), limits.min, limits.max).astype(np.int32)

    return run


@opcode("add", "sub", family="int")
def _add_sub(op: Operands) -> Run:
    if op.has("cc"):
        raise op.unknown()
    function = np.add if op.opcode == "add" else np.subtract
    return op.binary(_saturated(function) if op.has("sat") else function)


@opcode("mul", family="int")
def _mul(op: Operands) -> Run:
    if op.has("wide"):
        wide = _wide_type(op.type)
        dtype = DTYPES[wide]
        d, a, b = op.dest(0, wide), op.source(1), op.source(2)

        def run(lanes: Lanes) -> None:
            s = lanes.sel
            d[s] = np.multiply(a[s], b[s], dtype=dtype)

        return run
    return op.binary(multiply_high if op.one_of("lo", "hi") == "hi" else np.multiply)


@opcode("mad", family="int")
def _mad(op: Operands) -> Run:
    if op.has("cc", "sat"):
        raise op.unknown()
    if op.has("wide"):
        wide = _wide_type(op.type)
        dtype = DTYPES[wide]
        d, a, b, c = op.dest(0, wide), op.source(1), op.source(2), op.source(3, wide)

        def run(lanes: Lanes) -> None:
            s = lanes.sel
            d[s] = np.multiply(a[s], b[s], dtype=dtype) + c[s]

        return run
    if op.one_of("lo", "hi") == "hi":
        return op.ternary(lambda a, b, c: multiply_high(a, b) + c)
    return op.ternary(lambda a, b, c: a * b + c)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Divides toward zero; a zero divisor gives all ones, as on hardware."""
    safe = np.where(b == 0, 1, b).astype(b.dtype)
    quotient = a // safe
    if a.dtype.kind == "i":
        quotient += ((a % safe != 0) & ((a < 0) != (safe < 0))).astype(a.dtype)
    return np.where(b == 0, ~a.dtype.type(0), quotient)


def _remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(b == 0, a, a - _divide(a, b) * b)


@opcode("div", "rem", family="int")
def _div_rem(op: Operands) -> Run:
    return op.binary(_divide if op.opcode == "div" else _remainder)


@opcode("neg", "abs", family="int")
def _neg_abs(op: Operands) -> Run:
    return op.unary(np.negative if op.opcode == "neg" else np.abs)


@opcode("min", "max", family="int")
def _min_max(op: Operands) -> Run:
    if op.has("relu"):
        raise op.unknown()
    return op.binary(np.minimum if op.opcode == "min" else np.maximum)


@opcode("sad", family="int")
def _sad(op: Operands) -> Run:
    return op.ternary(lambda a, b, c: np.maximum(a, b) - np.minimum(a, b) + c)
