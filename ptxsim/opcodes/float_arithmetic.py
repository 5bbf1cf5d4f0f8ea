"""Implements float32 and float64 arithmetic, rounded once in the given direction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..fused import compiled_fma
from ..lanes import Lanes
from ..operands import Operands, Run
from ..rounding import (
    directed_float32,
    directed_float64,
    flush_subnormals,
    fma_float32,
    fma_float64,
    two_product,
    two_sum,
)
from .registry import opcode

Function = Callable[..., np.ndarray]
CANONICAL_NAN = np.array(0x7FFFFFFF, np.uint32).view(np.float32)


def finish(op: Operands, function: Function) -> Function:
    """Wraps a float function in `.ftz` and `.sat`."""
    flush, saturate = op.has("ftz") and op.type == "f32", op.has("sat")
    if not flush and not saturate:
        return function

    def run(*arguments: np.ndarray) -> np.ndarray:
        if flush:
            arguments = tuple(flush_subnormals(a) for a in arguments)
        result = function(*arguments)
        if saturate:
            result = np.where(np.isnan(result), 0, np.clip(result, 0, 1)).astype(result.dtype)
        return flush_subnormals(result) if flush else result

    return run


def _in_float64(function: Callable[..., tuple[np.ndarray, np.ndarray]], mode: str) -> Function:
    """Makes a float32 operation that computes in float64 with its exact error, then rounds in direction `mode`."""

    def run(*arguments: np.ndarray) -> np.ndarray:
        value, error = function(*(a.astype(np.float64) for a in arguments))
        return directed_float32(value, mode, error)

    return run


def _add_exact(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    value, error = two_sum(a, b)
    return value, np.where(np.isfinite(value), error, 0)


def _product_exact(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    value, error = two_product(a, b)
    return value, np.where(np.isfinite(value), error, 0)


def _fma_exact(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a * b + c of float32 values and its error; the product is exact in float64."""
    return _add_exact(a * b, c)


@opcode("add", "sub", "mul", family="float")
def _basic(op: Operands) -> Run:
    mode = op.one_of("rn", "rz", "rm", "rp", default="rn")
    function: Function = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[op.opcode]
    if mode == "rn":
        return op.binary(finish(op, function))
    exact = {"add": _add_exact, "sub": lambda a, b: _add_exact(a, -b), "mul": _product_exact}[op.opcode]
    if op.type == "f32":
        return op.binary(finish(op, _in_float64(exact, mode)))
    return op.binary(finish(op, lambda a, b: directed_float64(*exact(a, b), mode)))


def _fma_to_nearest(type_name: str) -> Function:
    return compiled_fma() or {"f32": fma_float32, "f64": fma_float64}[type_name]


@opcode("fma", "mad", family="float")
def _fma(op: Operands) -> Run:
    mode = op.one_of("rn", "rz", "rm", "rp")
    if op.type == "f32":
        return op.ternary(finish(op, _fma_to_nearest("f32") if mode == "rn" else _in_float64(_fma_exact, mode)))
    if mode != "rn":
        raise op.unknown()
    return op.ternary(_fma_to_nearest("f64"))


@opcode("div", family="float")
def _div(op: Operands) -> Run:
    if op.has("approx", "full"):
        return op.binary(finish(op, approximate(op, np.divide)))
    op.one_of("rn")
    return op.binary(finish(op, np.divide))


@opcode("neg", "abs", family="float")
def _neg_abs(op: Operands) -> Run:
    return op.unary(finish(op, np.negative if op.opcode == "neg" else np.abs))


def extremum(name: str, propagate_nan: bool) -> Function:
    """Makes PTX's min or max: NaN loses unless `.NaN` is given, a NaN result is canonical, and -0 is below +0."""
    smaller = name == "min"
    plain, propagating = (np.fmin, np.minimum) if smaller else (np.fmax, np.maximum)
    ufunc = propagating if propagate_nan else plain

    def two(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        result = ufunc(a, b)
        zero = result == 0
        if zero.any():
            # numpy returns either of two zeros; pick by sign.
            x, y = a[zero], b[zero]
            sign = (np.signbit(x) & (x == 0)) | (np.signbit(y) & (y == 0))
            if not smaller:
                sign = ~((~np.signbit(x) & (x == 0)) | (~np.signbit(y) & (y == 0)))
            result[zero] = np.where(sign, -0.0, 0.0)
        nan = np.isnan(result)
        if nan.any():
            result[nan] = CANONICAL_NAN
        return result

    return two


@opcode("min", "max", family="float")
def _min_max(op: Operands) -> Run:
    if op.has("xorsign", "abs"):
        raise op.unknown()
    two = finish(op, extremum(op.opcode, op.has("NaN")))
    if len(op) == 4:
        return op.ternary(lambda a, b, c: two(two(a, b), c))
    return op.binary(two)


@opcode("sqrt", "rcp", family="float")
def _sqrt_rcp(op: Operands) -> Run:
    function: Function = np.sqrt if op.opcode == "sqrt" else np.reciprocal
    if op.has("approx"):
        if op.type == "f64":
            op.accept("ftz")
            return op.unary(_reciprocal_ftz64(op))
        return op.unary(finish(op, approximate(op, function)))
    op.one_of("rn")
    return op.unary(finish(op, function))


def _reciprocal_ftz64(op: Operands) -> Function:
    """Implements `rcp.approx.ftz.f64`, which reads the upper 32 bits and gives 20 correct bits, the lower word 0."""

    def run(x: np.ndarray) -> np.ndarray:
        upper = np.uint64(0xFFFFFFFF00000000)
        seen = (np.ascontiguousarray(x).view(np.uint64) & upper).view(np.float64)
        seen = np.where(np.abs(seen) < 2.2250738585072014e-308, np.copysign(0.0, seen), seen)
        result = approximate(op, np.reciprocal)(seen)
        result = np.where(np.abs(result) < 2.2250738585072014e-308, np.copysign(0.0, result), result)
        return (result.view(np.uint64) & upper).view(np.float64)

    return run


def approximate(op: Operands, function: Function) -> Function:
    """Adds the launch's relative error to an `.approx` result, as a hash of the argument, equal in every thread."""
    machine = op.machine

    def run(*arguments: np.ndarray) -> np.ndarray:
        result = function(*arguments)
        if machine.approx_error == 0.0:
            return result
        key = np.zeros(len(result), np.uint64)
        for a in arguments:
            key ^= np.ascontiguousarray(a, np.float64).view(np.uint64)
            key *= np.uint64(0x9E3779B97F4A7C15)
            key ^= key >> np.uint64(29)
        key *= np.uint64(0xBF58476D1CE4E5B9)
        noise = (key >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0
        return (result * (1.0 + machine.approx_error * noise)).astype(result.dtype)

    return run


@opcode("copysign", family="float")
def _copysign(op: Operands) -> Run:
    return op.binary(lambda a, b: np.copysign(b, a))


@opcode("testp", family="float")
def _testp(op: Operands) -> Run:
    tiny = np.finfo(op.type.replace("f", "float")).tiny
    tests: dict[str, Function] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= tiny),
        "subnormal": lambda a: (np.abs(a) < tiny) & (a != 0),
    }
    return op.unary(tests[op.one_of(*tests)], op.type, "pred")


@opcode("add", "sub", "mul", "fma", family="f32x2")
def _packed_float32(op: Operands) -> Run:
    """Implements arithmetic on two float32 in 64 bits."""
    if op.one_of("rn", "rz", "rm", "rp", default="rn") != "rn":
        raise op.unknown()
    plain: dict[str, Function] = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
    function = _fma_to_nearest("f32") if op.opcode == "fma" else plain[op.opcode]
    flush = op.has("ftz")
    d = op.dest(0, "b64")
    sources = [op.source(i, "b64") for i in range(1, len(op))]

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        values = [np.ascontiguousarray(a[s]).view(np.float32) for a in sources]
        if flush:
            values = [flush_subnormals(v) for v in values]
        result = function(*values)
        d[s] = (flush_subnormals(result) if flush else result).view(np.uint64)

    return run
