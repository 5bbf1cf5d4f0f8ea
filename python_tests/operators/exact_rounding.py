"""Rounds rational numbers to binary floating point formats, by definition: the oracle for arithmetic tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

# significant bits, exponent of the smallest normal number, exponent of the largest
FORMATS = {"f16": (11, -14, 15), "bf16": (8, -126, 127), "f32": (24, -126, 127), "f64": (53, -1022, 1023)}


def round_exactly(value: Fraction, name: str, mode: str = "rn") -> float:
    """Returns the number of a format next to `value`: to nearest even, toward zero, down (rm), up (rp). 0 becomes
    +0."""
    bits, lowest, highest = FORMATS[name]
    if value == 0:
        return 0.0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, lowest) - bits + 1)
    whole = magnitude // unit
    rest = magnitude / unit - whole
    away = {"rz": False, "rm": value < 0, "rp": value > 0}.get(
        mode, rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1)
    )
    result = (whole + (1 if rest and away else 0)) * unit
    largest = (2 - Fraction(2) ** (1 - bits)) * Fraction(2) ** highest
    if result > largest:
        result_float = float(largest) if mode == "rz" or (mode != "rn" and not away) else math.inf
    else:
        result_float = float(result)
    return math.copysign(result_float, value)


def apply_exactly(function: Callable[..., Fraction], name: str, mode: str, *arguments: np.ndarray) -> np.ndarray:
    """Computes a rational function of finite arrays, element by element, rounded once."""
    columns = ([Fraction(float(x)) for x in a] for a in arguments)
    return np.array([round_exactly(function(*row), name, mode) for row in zip(*columns, strict=True)])
