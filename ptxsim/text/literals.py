"""Reads numbers as PTX writes them: `-12`, `0x1F`, `7U`, `0f3F800000`, `0d3FF0000000000000`."""

from __future__ import annotations

import re

import numpy as np

from ..scalar_types import DTYPES, UNSIGNED
from .syntax import Variable

_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?")
_SINGLE = re.compile(r"0[fF]([0-9a-fA-F]{8})")
_DOUBLE = re.compile(r"0[dD]([0-9a-fA-F]{16})")


def literal(text: str, type_name: str) -> np.ndarray | None:
    """Returns the value as a 0-d array of the type's dtype, or None if the text is no number."""
    dtype = DTYPES[type_name]
    if (match := _SINGLE.fullmatch(text)) is not None:
        value = np.array(int(match[1], 16), np.uint32).view(np.float32)
        return value.astype(dtype) if dtype.kind == "f" else value.view(np.uint32).astype(dtype)
    if (match := _DOUBLE.fullmatch(text)) is not None:
        value = np.array(int(match[1], 16), np.uint64).view(np.float64)
        return value.astype(dtype) if dtype.kind == "f" else value.view(np.uint64).astype(dtype)
    if _INTEGER.fullmatch(text) is None:
        return None
    digits = text.rstrip("U")
    octal = re.fullmatch(r"(-?)0(\d+)", digits)
    number = int(f"{octal[1]}0o{octal[2]}", 0) if octal else int(digits, 0)
    if type_name == "pred":
        return np.array(number != 0)
    width = dtype.itemsize
    return np.array(number & ((1 << 8 * width) - 1), UNSIGNED[width]).view(dtype)


def variable_bytes(variable: Variable) -> np.ndarray:
    """Returns the initial bytes of a module variable: zeros if the declaration gives none."""
    values = np.zeros(variable.size, np.uint8)
    width = DTYPES[variable.type_name].itemsize
    for i, text in enumerate(variable.initial):
        value = literal(text, variable.type_name)
        if value is None:
            raise NotImplementedError(f"initial value {text} of {variable.name}")
        values[i * width : (i + 1) * width] = np.atleast_1d(value).view(np.uint8)
    return values
