"""Implements cvt in every direction between integers, float16, bfloat16, float32 and float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..lanes import Lanes
from ..operands import Operands, Run
from ..rounding import directed_float32, directed_float64, float32_to_bfloat16, flush_subnormals, two_sum
from ..scalar_types import DTYPES
from .half_arithmetic import decode_half, encode_half
from .registry import opcode

_INTEGER_ROUNDING = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_FLOATS = ("f16", "bf16", "f32", "f64")


def _float_to_integer(x: np.ndarray, dtype: np.dtype, rounding: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Converts with saturation; NaN becomes 0."""
    x = rounding(x.astype(np.float64))
    limits = np.iinfo(dtype)
    top = float(limits.max)  # of a 64-bit type this rounds up to a power of two that does not fit
    high, low = x >= top, x <= float(limits.min)
    inside = np.where(high | low | np.isnan(x), 0, x).astype(dtype)
    return np.where(high, dtype.type(limits.max), np.where(low, dtype.type(limits.min), inside))


def _narrow_integer(x: np.ndarray, dtype: np.dtype, saturate: bool) -> np.ndarray:
    if saturate:
        limits = np.iinfo(dtype)
        low = max(limits.min, np.iinfo(x.dtype).min)
        high = min(limits.max, np.iinfo(x.dtype).max)
        x = np.clip(x, x.dtype.type(low), x.dtype.type(high))
    return x.astype(dtype)


def _integer_to_float(x: np.ndarray, target: str, mode: str) -> np.ndarray:
    if mode == "rn":
        return x.astype(DTYPES[target])
    low = x & x.dtype.type(2047 if x.dtype.itemsize == 8 else 0)  # the rest fits a float64 exactly
    value, error = two_sum((x - low).astype(np.float64), low.astype(np.float64))
    return directed_float32(value, mode, error) if target == "f32" else directed_float64(value, error, mode)


def _to_float(op: Operands, target: str, source: str) -> Callable[[np.ndarray], np.ndarray]:
    mode = op.one_of("rn", "rz", "rm", "rp", default="rn")
    rounding = next((_INTEGER_ROUNDING[m] for m in op.modifiers if m in _INTEGER_ROUNDING), None)
    flush, saturate, relu = op.has("ftz"), op.has("sat"), op.has("relu")
    from_half, from_float = source in ("f16", "bf16"), source in _FLOATS

    def convert(x: np.ndarray) -> np.ndarray:
        if from_half:
            x = decode_half(np.ascontiguousarray(x), source)
        if flush and source == "f32":
            x = flush_subnormals(x)
        if rounding is not None:
            x = rounding(x)
        if relu:
            x = np.where(np.isnan(x), x, np.maximum(x, 0)).astype(x.dtype)
        if saturate:
            x = np.where(np.isnan(x), 0, np.clip(x, 0, 1)).astype(x.dtype)
        if target in ("f16", "bf16"):
            if mode == "rz" and target == "bf16" and x.dtype == np.float32:
                return float32_to_bfloat16(np.ascontiguousarray(x), "rz")
            if mode != "rn":
                raise op.unknown()
            return encode_half(x, target)
        if not from_float:
            return _integer_to_float(x, target, mode)
        if target == "f32" and x.dtype == np.float64:
            x = directed_float32(x, mode)
        result = x.astype(DTYPES[target])
        return flush_subnormals(result) if flush and target == "f32" else result

    return convert


@opcode("cvt")
def _cvt(op: Operands) -> Run:
    # 1. Refuse the forms that no kernel uses.
    if len(op.modifiers) < 2 or op.modifiers[-1] not in DTYPES or op.modifiers[-2] not in DTYPES:
        raise op.unknown()
    target, source = op.modifiers[-2:]
    if op.has("rna", "rs", "satfinite", "scaled"):
        raise op.unknown()
    if target in ("f16x2", "bf16x2"):
        return _pack_pair(op, target, source)
    if source in ("f16x2", "bf16x2"):
        raise op.unknown()
    op.has("sat", "ftz", "relu", *_INTEGER_ROUNDING)  # one that does not apply is no error in PTX
    # 2. Choose the conversion by the kinds of both types.
    dtype = DTYPES[target]
    convert: Callable[[np.ndarray], np.ndarray]
    if target in _FLOATS:
        convert = _to_float(op, target, source)
    elif source in _FLOATS:
        rounding = _INTEGER_ROUNDING[op.one_of(*_INTEGER_ROUNDING)]
        half, flush = source in ("f16", "bf16"), op.has("ftz")

        def convert(x: np.ndarray) -> np.ndarray:
            x = decode_half(np.ascontiguousarray(x), source) if half else flush_subnormals(x) if flush else x
            return _float_to_integer(x, dtype, rounding)
    else:
        saturate = op.has("sat")

        def convert(x: np.ndarray) -> np.ndarray:
            return _narrow_integer(x, dtype, saturate)

    # 3. Run it on the active lanes.
    d = op.dest(0, "b16" if target in ("f16", "bf16") else target)
    a = op.source(1, "b16" if source in ("f16", "bf16") else source)

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        d[s] = convert(a[s])

    return run


def _pack_pair(op: Operands, target: str, source: str) -> Run:
    """Implements `cvt.rn.bf16x2.f32 d, a, b`, in which a becomes the upper half."""
    if source != "f32" or len(op) != 3:
        raise op.unknown()
    convert = _to_float(op, target.removesuffix("x2"), source)
    d, upper, lower = op.dest(0, "b32"), op.source(1, "f32"), op.source(2, "f32")

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        d[s] = convert(upper[s]).astype(np.uint32) << np.uint32(16) | convert(lower[s])

    return run
