"""Implements the special function unit by rounded float64; a launch's `approx_error` models the unit's inaccuracy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..operands import Operands, Run
from .float_arithmetic import approximate, finish
from .registry import opcode

FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


@opcode("ex2", "lg2", "rsqrt", "sin", "cos", "tanh", family="float")
def _special(op: Operands) -> Run:
    op.one_of("approx")
    function = FUNCTIONS[op.opcode]
    if op.type == "f64":
        if op.opcode != "rsqrt":
            raise op.unknown()
        op.accept("ftz")
        return op.unary(approximate(op, function))
    return op.unary(finish(op, approximate(op, lambda x: function(x.astype(np.float64)).astype(np.float32))))
