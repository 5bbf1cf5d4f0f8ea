"""Implements every supported opcode, by subject. Importing a module registers its opcodes."""

from . import (
    addresses,
    atomics,
    bits,
    comparison,
    control,
    conversion,
    float_arithmetic,
    half_arithmetic,
    integer_arithmetic,
    matrix,
    memory_access,
    moves,
    transcendental,
    warp,
)

__all__ = [
    "addresses",
    "atomics",
    "bits",
    "comparison",
    "control",
    "conversion",
    "float_arithmetic",
    "half_arithmetic",
    "integer_arithmetic",
    "matrix",
    "memory_access",
    "moves",
    "transcendental",
    "warp",
]
