"""Implements every supported opcode, by subject. Importing a module registers its opcodes."""

from . import (
    addresses,
    asynchronous,
    atomics,
    bits,
    comparison,
    control,
    conversion,
    float_arithmetic,
    half_arithmetic,
    integer_arithmetic,
    matrix,
    mbarriers,
    memory_access,
    moves,
    transcendental,
    warp,
)

__all__ = [
    "addresses",
    "asynchronous",
    "atomics",
    "bits",
    "comparison",
    "control",
    "conversion",
    "float_arithmetic",
    "half_arithmetic",
    "integer_arithmetic",
    "matrix",
    "mbarriers",
    "memory_access",
    "moves",
    "transcendental",
    "warp",
]
