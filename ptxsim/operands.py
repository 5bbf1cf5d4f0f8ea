"""Turns an instruction's operands into arrays with one entry per lane, once, before it runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .lanes import Lanes
from .scalar_types import DTYPES, SIGNED, UNSIGNED
from .text.literals import literal
from .text.syntax import Function, Instruction

if TYPE_CHECKING:
    from .machine import Machine

Run = Callable[[Lanes], None]
_ADDRESS = re.compile(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+))?\s*\]")


class Operands:
    """One instruction of a program, as the code that implements it reads it."""

    def __init__(self, machine: Machine, function: Function, instruction: Instruction, pc: int) -> None:
        self.machine = machine
        self.function = function
        self.instruction = instruction
        self.pc = pc
        self.opcode = instruction.opcode
        self.modifiers = instruction.modifiers
        self.type = next((m for m in reversed(self.modifiers) if m in DTYPES), "")
        self._considered: set[str] = set(DTYPES)

    def __len__(self) -> int:
        return len(self.instruction.operands)

    def __getitem__(self, i: int) -> str:
        return self.instruction.operands[i]

    def has(self, *modifiers: str) -> bool:
        """Returns whether one of the modifiers is given."""
        self._considered.update(modifiers)
        return any(m in self.modifiers for m in modifiers)

    def one_of(self, *modifiers: str, default: str | None = None) -> str:
        """Returns the one of these modifiers that is given."""
        self._considered.update(modifiers)
        for modifier in self.modifiers:
            if modifier in modifiers:
                return modifier
        if default is None:
            raise self.unknown()
        return default

    def accept(self, *modifiers: str) -> None:
        """Accepts modifiers that change nothing here."""
        self._considered.update(modifiers)

    def refuse_unconsidered(self) -> None:
        """Raises if a modifier is given that no code has looked at."""
        if not self._considered.issuperset(self.modifiers):
            raise self.unknown()

    def unknown(self) -> NotImplementedError:
        """Returns the error for a form that is not supported."""
        return NotImplementedError(str(self.instruction))

    def source(self, operand: int | str, type_name: str | None = None) -> np.ndarray:
        """Returns the values per lane, of the dtype of `type_name` (the instruction's own type if not given)."""
        text = self[operand] if isinstance(operand, int) else operand
        type_name = type_name or self.type
        dtype = DTYPES[type_name]
        lanes = self.machine.geometry.lanes
        register = self.machine.state.register(self.function, text)
        if register is not None:
            return self._as(register, dtype)
        value = literal(text, type_name)
        if value is not None:
            return np.broadcast_to(value, lanes)
        special = self.machine.state.special(text)
        if special is not None:
            if dtype.kind == "b":
                return special != 0
            if dtype.itemsize != 4:
                raise self.unknown()
            return special.view(dtype)
        symbol = self.symbol_address(text)
        if symbol is not None:
            return (
                np.broadcast_to(symbol.astype(np.uint64)[0].astype(dtype), lanes)
                if dtype.itemsize < 8
                else np.broadcast_to(symbol, lanes).view(dtype)
            )
        raise self.unknown()

    def _as(self, register: np.ndarray, dtype: np.dtype) -> np.ndarray:
        if register.dtype.kind == "b" or dtype.kind == "b":
            if register.dtype != dtype:
                raise self.unknown()
            return register
        ratio, remainder = divmod(register.dtype.itemsize, dtype.itemsize)
        if remainder:
            raise self.unknown()
        return register.view(dtype)[::ratio]

    def dest(self, operand: int | str, type_name: str | None = None) -> np.ndarray:
        """Returns the array for values of `type_name`: assignment extends them to the register's width by their
        sign."""
        text = self[operand] if isinstance(operand, int) else operand
        dtype = DTYPES[type_name or self.type]
        if text == "_":
            return np.empty(self.machine.geometry.lanes, dtype)
        register = self.machine.state.register(self.function, text)
        if register is None:
            raise self.unknown()
        if register.dtype.kind == "b" or dtype.kind == "b":
            return self._as(register, dtype)
        if register.dtype.itemsize == dtype.itemsize:
            return register.view(dtype)
        if register.dtype.itemsize < dtype.itemsize or dtype.kind == "f":
            raise self.unknown()
        return register.view((SIGNED if dtype.kind == "i" else UNSIGNED)[register.dtype.itemsize])

    def dest_pair(self, operand: int, type_name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the destination and its optional predicate, written `%r1|%p1`."""
        first, _, second = self[operand].partition("|")
        return self.dest(first, type_name), self.dest(second, "pred") if second else None

    def predicate(self, operand: int | str) -> Callable[[Lanes], np.ndarray]:
        """Returns `%p1` or `!%p1` as a function of the active lanes."""
        text = self[operand] if isinstance(operand, int) else operand
        values = self.source(text.lstrip("!"), "pred")
        if text.startswith("!"):
            return lambda lanes: ~values[lanes.sel]
        return lambda lanes: values[lanes.sel]

    def elements(self, operand: int) -> list[str]:
        """Names inside `{%r1, %r2}`, or the operand itself."""
        text = self[operand]
        return [x.strip() for x in text.strip("{}").split(",")] if text.startswith("{") else [text]

    def symbol_address(self, text: str) -> np.ndarray | None:
        """Returns address, in its own state space, of `name` or `name+8`: an array of one entry, filled before every
        launch."""
        name, _, plus = text.partition("+")
        machine = self.machine
        offset: int | None = machine.shared_layout.get(name)
        if offset is None:
            offset = machine.state.local_offset(self.function, name)
        if offset is None and self.function is machine.kernel:
            offset = machine.state.parameter_offsets.get(name)
        if offset is None:
            return machine.module_symbol(name, int(plus or "0", 0))
        return np.array([offset + int(plus or "0", 0)], np.uint64)

    def address(self, operand: int) -> tuple[str, int]:
        """Splits `[%rd1+8]` into base and displacement."""
        match = _ADDRESS.fullmatch(self[operand])
        if match is None:
            raise self.unknown()
        return match[1], int(match[2] or "0", 0)

    def address_source(self, operand: int) -> Callable[[Lanes], np.ndarray]:
        """Returns the addresses of the active lanes as int64."""
        base, displacement = self.address(operand)
        register = self.machine.state.register(self.function, base)
        if register is not None and register.dtype.itemsize == 4:
            return lambda lanes: register[lanes.sel].astype(np.int64) + displacement
        source = self.source(base, "s64")
        if displacement == 0:
            return lambda lanes: source[lanes.sel]
        return lambda lanes: source[lanes.sel] + displacement

    def unary(
        self, function: Callable[[np.ndarray], np.ndarray], type_name: str | None = None, result: str | None = None
    ) -> Run:
        """Computes dest = function(operand 1)."""
        return _elementwise(function, self.dest(0, result or type_name), [self.source(1, type_name)])

    def binary(self, function: Callable[[np.ndarray, np.ndarray], np.ndarray], type_name: str | None = None) -> Run:
        """Computes dest = function(operand 1, operand 2)."""
        return _elementwise(function, self.dest(0, type_name), [self.source(i, type_name) for i in (1, 2)])

    def ternary(self, function: Callable[..., np.ndarray], type_name: str | None = None) -> Run:
        """Computes dest = function(operands 1, 2, 3)."""
        return _elementwise(function, self.dest(0, type_name), [self.source(i, type_name) for i in (1, 2, 3)])


def _elementwise(function: Callable[..., np.ndarray], dest: np.ndarray, sources: list[np.ndarray]) -> Run:
    """Returns the code that sets dest = function(*sources) for the active lanes."""
    # Called for most statements: written out for each number of sources, because a list of them takes as long as numpy.
    if isinstance(function, np.ufunc) and all(source.dtype == dest.dtype for source in sources):
        return _in_place(function, dest, sources)

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        dest[s] = function(*[source[s] for source in sources])

    return run


def _in_place(function: np.ufunc, dest: np.ndarray, sources: list[np.ndarray]) -> Run:
    """Returns the code of a ufunc whose operands have one dtype, which writes into the registers themselves."""
    a, b, c = (*sources, dest, dest)[:3]

    def one(lanes: Lanes) -> None:
        s = lanes.sel
        if type(s) is slice:
            function(a[s], dest[s])
        else:
            dest[s] = function(a[s])

    def two(lanes: Lanes) -> None:
        s = lanes.sel
        if type(s) is slice:
            function(a[s], b[s], dest[s])
        else:
            dest[s] = function(a[s], b[s])

    def three(lanes: Lanes) -> None:
        s = lanes.sel
        if type(s) is slice:
            function(a[s], b[s], c[s], dest[s])
        else:
            dest[s] = function(a[s], b[s], c[s])

    return (one, two, three)[len(sources) - 1]
