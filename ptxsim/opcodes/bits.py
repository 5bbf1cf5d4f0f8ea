"""Implements logic, shifts, and the bit operations that libdevice needs."""

from __future__ import annotations

import numpy as np

from ..lanes import Lanes
from ..operands import Operands, Run
from ..scalar_types import DTYPES, SIGNED, UNSIGNED
from .registry import opcode

_LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@opcode("and", "or", "xor", family="int")
def _logic(op: Operands) -> Run:
    return op.binary(_LOGIC[op.opcode])


@opcode("and", "or", "xor", family="pred")
def _logic_pred(op: Operands) -> Run:
    return op.binary({"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[op.opcode])


@opcode("not", family="int")
def _not(op: Operands) -> Run:
    return op.unary(np.invert)


@opcode("not", family="pred")
def _not_pred(op: Operands) -> Run:
    return op.unary(np.logical_not)


@opcode("cnot", family="int")
def _cnot(op: Operands) -> Run:
    return op.unary(lambda a: (a == 0).astype(a.dtype))


@opcode("shl", "shr", family="int")
def _shift(op: Operands) -> Run:
    """Implements shl and shr, in which a count past the width shifts everything out."""
    d, a, count = op.dest(0), op.source(1), op.source(2, "u32")
    dtype = DTYPES[op.type]
    width = 8 * dtype.itemsize
    ufunc = np.left_shift if op.opcode == "shl" else np.right_shift
    arithmetic = op.opcode == "shr" and dtype.kind == "i"

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        n = count[s]
        if n.max() < width:
            d[s] = ufunc(a[s], n.astype(dtype))
        elif arithmetic:
            d[s] = ufunc(a[s], np.minimum(n, width - 1).astype(dtype))
        else:
            d[s] = np.where(n < width, ufunc(a[s], np.minimum(n, width - 1).astype(dtype)), dtype.type(0))

    return run


@opcode("lop3", family="int")
def _lop3(op: Operands) -> Run:
    if len(op) != 5:
        raise op.unknown()
    table = int(op[4], 0)

    def function(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        result = np.zeros_like(a)
        for i in range(8):
            if table >> i & 1:
                result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        return result

    return op.ternary(function)


@opcode("shf", family="int")
def _funnel_shift(op: Operands) -> Run:
    wrap, left = op.one_of("wrap", "clamp") == "wrap", op.one_of("l", "r") == "l"

    def function(low: np.ndarray, high: np.ndarray, count: np.ndarray) -> np.ndarray:
        n = (count & 31 if wrap else np.minimum(count, 32)).astype(np.uint64)
        both = high.astype(np.uint64) << np.uint64(32) | low
        shifted = both << n >> np.uint64(32) if left else both >> n
        return shifted.astype(np.uint32)

    return op.ternary(function, "u32")


def bit_length(x: np.ndarray) -> np.ndarray:
    """Returns the position of the highest set bit plus one; 0 for 0."""
    if x.dtype.itemsize == 8:
        high = bit_length((x >> np.uint64(32)).astype(np.uint32))
        return np.where(high > 0, high + 32, bit_length(x.astype(np.uint32)))
    return np.frexp(x.astype(np.float64))[1].astype(np.int64)


def popcount(x: np.ndarray) -> np.ndarray:
    """Returns the number of set bits."""
    x = x.astype(np.uint64)
    one, two, four = np.uint64(1), np.uint64(2), np.uint64(4)
    x = x - (x >> one & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + (x >> two & np.uint64(0x3333333333333333))
    x = (x + (x >> four)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101) >> np.uint64(56)).astype(np.uint32)


@opcode("popc", "clz", family="int")
def _popc_clz(op: Operands) -> Run:
    width = 8 * DTYPES[op.type].itemsize
    return op.unary(
        popcount if op.opcode == "popc" else lambda a: (width - bit_length(a)).astype(np.uint32), op.type, "u32"
    )


@opcode("bfind", family="int")
def _bfind(op: Operands) -> Run:
    """Finds the highest bit that differs from the sign; 0xFFFFFFFF if there is none."""
    dtype = DTYPES[op.type]
    width, shift_amount = 8 * dtype.itemsize, op.has("shiftamt")

    def function(a: np.ndarray) -> np.ndarray:
        if dtype.kind == "i":
            a = np.where(a < 0, ~a, a).view(UNSIGNED[dtype.itemsize])
        length = bit_length(a)
        found = width - length if shift_amount else length - 1
        return np.where(length == 0, -1, found).astype(np.uint32)

    return op.unary(function, op.type, "u32")


@opcode("brev", family="int")
def _brev(op: Operands) -> Run:
    def function(a: np.ndarray) -> np.ndarray:
        width = a.dtype.itemsize
        octets = np.ascontiguousarray(a).view(np.uint8).reshape(-1, width)
        bits = np.unpackbits(octets, axis=1, bitorder="little")
        return np.packbits(bits[:, ::-1], axis=1, bitorder="little").reshape(-1).view(a.dtype)

    return op.unary(function)


@opcode("bfe", family="int")
def _bfe(op: Operands) -> Run:
    dtype = DTYPES[op.type]
    width = 8 * dtype.itemsize
    d, a, start, length = op.dest(0), op.source(1), op.source(2, "u32"), op.source(3, "u32")

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        position, count = start[s].astype(np.int64) & 255, length[s].astype(np.int64) & 255
        value = a[s].astype(SIGNED[8]) if dtype.kind == "i" else a[s].astype(UNSIGNED[8])
        kept = np.clip(np.minimum(count, width - position), 0, width)
        wide = value.dtype.type
        shifted = value >> np.minimum(position, 63).astype(value.dtype)
        drop = np.minimum(64 - kept, 63).astype(value.dtype)
        field = shifted << drop >> drop  # arithmetic for signed types: extends the field's sign
        beyond = (kept == 0) & (count > 0)
        sign = np.where(value < 0, wide(-1) if dtype.kind == "i" else wide(0), wide(0))
        d[s] = np.where(kept > 0, field, np.where(beyond, sign, wide(0))).astype(dtype)

    return run


@opcode("bfi", family="int")
def _bfi(op: Operands) -> Run:
    dtype = DTYPES[op.type]
    width = 8 * dtype.itemsize
    d, a, b, start, length = op.dest(0), op.source(1), op.source(2), op.source(3, "u32"), op.source(4, "u32")

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        position, count = start[s] & np.uint32(255), length[s] & np.uint32(255)
        n = np.minimum(count, width)
        ones = np.where(
            n >= width, ~dtype.type(0), (dtype.type(1) << np.minimum(n, width - 1).astype(dtype)) - dtype.type(1)
        )
        shift = np.minimum(position, width - 1).astype(dtype)
        mask = np.where(position < width, ones << shift, dtype.type(0))
        d[s] = (b[s] & ~mask) | (a[s] << shift & mask)

    return run


@opcode("prmt", family="int")
def _prmt(op: Operands) -> Run:
    if op.has("f4e", "b4e", "rc8", "ecl", "ecr", "rc16"):
        raise op.unknown()

    def function(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
        both = b.astype(np.uint64) << np.uint64(32) | a
        result = np.zeros(len(a), np.uint32)
        for i in range(4):
            control = selector >> np.uint32(4 * i)
            octet = (both >> ((control & np.uint32(7)) * np.uint32(8)).astype(np.uint64)).astype(np.uint8)
            sign = (octet.view(np.int8) >> 7).view(np.uint8)
            octet = np.where(control & np.uint32(8), sign, octet)
            result |= octet.astype(np.uint32) << np.uint32(8 * i)
        return result

    return op.ternary(function, "u32")
