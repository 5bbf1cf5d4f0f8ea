"""Maps PTX's fundamental types to numpy dtypes.

bfloat16 has no numpy dtype and packed pairs have none: they are kept as the unsigned integer that holds their bits.
"""

from __future__ import annotations

import numpy as np

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "b8": "u1", "u8": "u1", "s8": "i1",
        "b16": "u2", "u16": "u2", "s16": "i2", "f16": "f2", "bf16": "u2",
        "b32": "u4", "u32": "u4", "s32": "i4", "f32": "f4", "f16x2": "u4", "bf16x2": "u4",
        "b64": "u8", "u64": "u8", "s64": "i8", "f64": "f8", "f32x2": "u8",
        "pred": "?",
    }.items()
}  # fmt: skip

UNSIGNED: dict[int, np.dtype] = {1: np.dtype("u1"), 2: np.dtype("u2"), 4: np.dtype("u4"), 8: np.dtype("u8")}
SIGNED: dict[int, np.dtype] = {1: np.dtype("i1"), 2: np.dtype("i2"), 4: np.dtype("i4"), 8: np.dtype("i8")}


def storage_dtype(type_name: str) -> np.dtype:
    """Returns the dtype a register or variable element of this type is kept in: unsigned bits, or bool for a
    predicate."""
    if type_name not in DTYPES:
        raise NotImplementedError(f"register type .{type_name}")
    return DTYPES["pred"] if type_name == "pred" else UNSIGNED[DTYPES[type_name].itemsize]
