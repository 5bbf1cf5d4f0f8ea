"""Implements float16 and bfloat16, single and packed in pairs.

Results are rounded once, from an exact or odd-rounded float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..lanes import Lanes
from ..operands import Operands, Run
from ..rounding import bfloat16_to_float32, float64_to_bfloat16, fma_odd
from .float_arithmetic import approximate, extremum
from .registry import opcode
from .transcendental import FUNCTIONS

_NAN = np.uint16(0x7FFF)


def is_bfloat(type_name: str) -> bool:
    """Returns whether the type is bf16 or bf16x2."""
    return type_name.startswith("bf16")


def decode_half(bits: np.ndarray, type_name: str) -> np.ndarray:
    """Returns 16-bit patterns as float32, exactly."""
    return bfloat16_to_float32(bits) if is_bfloat(type_name) else bits.view(np.float16).astype(np.float32)


def encode_half(values: np.ndarray, type_name: str) -> np.ndarray:
    """Returns float64 (or float32) values rounded once to 16-bit patterns; NaN becomes 0x7FFF."""
    if is_bfloat(type_name):
        return float64_to_bfloat16(values.astype(np.float64))
    nan = np.isnan(values)
    bits = values.astype(np.float16).view(np.uint16)
    return np.where(nan, _NAN, bits) if nan.any() else bits


def _elementwise(op: Operands, count: int, function: Callable[..., np.ndarray]) -> Run:
    """Computes dest = function(bits of operands 1..count) on every half of the operands."""
    whole = "b32" if op.type.endswith("x2") else "b16"
    d = op.dest(0, whole)
    sources = [op.source(i + 1, whole) for i in range(count)]

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        d[s] = function(*(np.ascontiguousarray(a[s]).view(np.uint16) for a in sources)).view(d.dtype)

    return run


def _finish(op: Operands, values: np.ndarray) -> np.ndarray:
    if op.has("relu"):
        values = np.where(np.isnan(values), values, np.maximum(values, 0))
    if op.has("sat"):
        values = np.where(np.isnan(values), 0, np.clip(values, 0, 1))
    if op.has("ftz") and not is_bfloat(op.type):
        values = np.where(np.abs(values) < 2.0**-14, np.copysign(0.0, values), values)
    return encode_half(values, op.type)


@opcode("add", "sub", "mul", "fma", family="half")
def _arithmetic(op: Operands) -> Run:
    # Sums and products of two halves have an exact or innocuously rounded float64; a fused sum may not.
    functions: dict[str, Callable[..., np.ndarray]] = {
        "add": lambda a, b: np.add(a, b, dtype=np.float64),
        "sub": lambda a, b: np.subtract(a, b, dtype=np.float64),
        "mul": lambda a, b: np.multiply(a, b, dtype=np.float64),
        "fma": fma_odd,
    }
    if op.one_of("rn", "rz", default="rn") != "rn" or op.has("oob"):
        raise op.unknown()
    op.accept("relu", "sat", "ftz")  # _finish sees to them
    function, name = functions[op.opcode], op.type

    def compute(*bits: np.ndarray) -> np.ndarray:
        return _finish(op, function(*(decode_half(x, name) for x in bits)))

    return _elementwise(op, 3 if op.opcode == "fma" else 2, compute)


@opcode("min", "max", family="half")
def _min_max(op: Operands) -> Run:
    if op.has("xorsign", "abs"):
        raise op.unknown()
    op.accept("ftz")
    two, name, count = extremum(op.opcode, op.has("NaN")), op.type, len(op) - 1

    def compute(*bits: np.ndarray) -> np.ndarray:
        values = [decode_half(x, name) for x in bits]
        result = two(values[0], values[1])
        return _finish(op, result if count == 2 else two(result, values[2]))

    return _elementwise(op, count, compute)


@opcode("neg", "abs", family="half")
def _neg_abs(op: Operands) -> Run:
    op.accept("ftz")
    sign = np.uint16(0x8000)
    return _elementwise(op, 1, (lambda x: x ^ sign) if op.opcode == "neg" else (lambda x: x & ~sign))


@opcode("ex2", "tanh", family="half")
def _special(op: Operands) -> Run:
    op.one_of("approx")
    op.accept("ftz")
    function, name = approximate(op, FUNCTIONS[op.opcode]), op.type
    return _elementwise(op, 1, lambda x: _finish(op, function(decode_half(x, name).astype(np.float64))))
