"""Maps each opcode to the code that implements it.

A straight opcode's builder returns a function of the active lanes. A control opcode's builder returns a function that
also returns the next pc of its lanes. A collective opcode needs all lanes of its mask at the same statement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..lanes import Lanes
from ..operands import Operands, Run

Next = tuple[int, Lanes] | None  # pc and lanes that continue at once; None if the lanes were queued, wait or have ended
Builder = Callable[[Operands], Run]
ControlBuilder = Callable[[Operands], Callable[[Lanes], Next]]


@dataclass(frozen=True)
class Collective:
    """A warp-wide instruction and the operand that holds its mask (None: the whole warp takes part, `.aligned`)."""

    build: Builder
    mask_operand: int | None


FAMILIES = {
    **dict.fromkeys(("f32", "f64"), "float"),
    **dict.fromkeys(("f16", "bf16", "f16x2", "bf16x2"), "half"),
    **dict.fromkeys(("b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "b64", "u64", "s64"), "int"),
    "pred": "pred",
    "f32x2": "f32x2",
}

_straight: dict[tuple[str, str], Builder] = {}
_control: dict[str, ControlBuilder] = {}
_collective: dict[str, Collective] = {}


def opcode(*names: str, family: str = "") -> Callable[[Builder], Builder]:
    """Registers a builder for opcodes with a type of `family`; `""` stands for all families without a builder."""

    def register(builder: Builder) -> Builder:
        for name in names:
            _straight[name, family] = builder
        return builder

    return register


def control(*names: str) -> Callable[[ControlBuilder], ControlBuilder]:
    """Registers a builder for opcodes that choose the next pc of lanes."""

    def register(builder: ControlBuilder) -> ControlBuilder:
        _control.update(dict.fromkeys(names, builder))
        return builder

    return register


def collective(*names: str, mask_operand: int | None) -> Callable[[Builder], Builder]:
    """Registers a builder for warp-wide opcodes. `-1` means that the mask is the last operand."""

    def register(builder: Builder) -> Builder:
        _collective.update(dict.fromkeys(names, Collective(builder, mask_operand)))
        return builder

    return register


def _control_key(opcode_name: str, modifiers: tuple[str, ...]) -> str:
    """Tells the barriers of a warp, a block, a cluster and in memory apart, which share opcodes."""
    if opcode_name == "mbarrier" and not {"test_wait", "try_wait"}.isdisjoint(modifiers):
        return "mbarrier.wait"
    if opcode_name in ("bar", "barrier") and "warp" in modifiers:
        return "bar.warp"
    if opcode_name == "barrier" and "cluster" in modifiers:
        return "barrier.cluster"
    return opcode_name


def _straight_key(opcode_name: str, modifiers: tuple[str, ...]) -> str:
    """Tells asynchronous stores and copies from others, and the operations on mbarriers apart."""
    if opcode_name == "mbarrier":
        return f"mbarrier.{modifiers[0]}"
    if opcode_name == "st" and modifiers[:1] == ("async",):
        return "st.async"
    if opcode_name == "cp":
        return ".".join(("cp", *modifiers[:2]))
    return opcode_name


def find_control(opcode_name: str, modifiers: tuple[str, ...]) -> ControlBuilder | None:
    """Returns the builder of a control opcode, or None."""
    return _control.get(_control_key(opcode_name, modifiers))


def find_collective(opcode_name: str, modifiers: tuple[str, ...]) -> Collective | None:
    """Returns the collective opcode, or None."""
    return _collective.get(_control_key(opcode_name, modifiers))


def build(operands: Operands) -> Run:
    """Returns the function that executes a straight opcode.

    Raises:
        NotImplementedError: The opcode is unknown; the message names the statement.
    """
    family = FAMILIES.get(operands.type, "")
    name = _straight_key(operands.opcode, operands.modifiers)
    builder = _straight.get((name, family)) or _straight.get((name, ""))
    if builder is None:
        raise operands.unknown()
    return builder(operands)
