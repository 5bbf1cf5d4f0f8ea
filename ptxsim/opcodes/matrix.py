"""Implements mma.sync.m16n8k16 of float16 or bfloat16 with float32 sums. Products are exact, a sum is rounded once."""

from __future__ import annotations

import numpy as np

from ..lanes import WARP, Lanes
from ..operands import Operands, Run
from .half_arithmetic import decode_half
from .registry import collective


def _halves(registers: list[np.ndarray], lanes: Lanes, type_name: str) -> np.ndarray:
    """Returns [warp, lane, register, half] as float64."""
    packed = np.stack([r[lanes.sel] for r in registers], axis=1)
    values = decode_half(packed.reshape(-1).view(np.uint16), type_name)
    return values.astype(np.float64).reshape(-1, WARP, len(registers), 2)


@collective("mma", mask_operand=None)
def _mma(op: Operands) -> Run:
    # 1. Check the form, and find the registers of the four tiles.
    if not op.has("m16n8k16") or op.modifiers[-4::3] != ("f32", "f32") or op.modifiers[-3] not in ("f16", "bf16"):
        raise op.unknown()
    type_name = op.modifiers[-3]
    if not op.has("row") or not op.has("col"):
        raise op.unknown()
    op.accept("sync", "aligned")
    d = [op.dest(name, "f32") for name in op.elements(0)]
    a_registers = [op.source(name, "b32") for name in op.elements(1)]
    b_registers = [op.source(name, "b32") for name in op.elements(2)]
    c = [op.source(name, "f32") for name in op.elements(3)]
    lane = np.arange(WARP)
    group, pair = lane // 4, lane % 4 * 2

    # 2. Lay the registers of a warp out as matrices, multiply, and lay the product out as registers.
    def run(lanes: Lanes) -> None:
        if not lanes.whole_warps or lanes.count % WARP:
            op.machine.findings.add("partial_warp", op.instruction, "executed by part of a warp")
            return
        a_values, b_values = _halves(a_registers, lanes, type_name), _halves(b_registers, lanes, type_name)
        warps = len(a_values)
        a, b = np.zeros((warps, 16, 16)), np.zeros((warps, 16, 8))
        for half in (0, 1):
            for i, (row, column) in enumerate(((0, 0), (8, 0), (0, 8), (8, 8))):
                a[:, group + row, pair + column + half] = a_values[:, :, i, half]
            for i, row in enumerate((0, 8)):
                b[:, pair + row + half, group] = b_values[:, :, i, half]
        product = a @ b
        s = lanes.sel
        for i, register in enumerate(d):
            tile = product[:, group + 8 * (i // 2), pair + i % 2].reshape(-1)
            register[s] = (tile + c[i][s]).astype(np.float32)

    return run
