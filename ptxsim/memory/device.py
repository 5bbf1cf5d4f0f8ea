"""Holds global memory: named allocations between guard bands, each byte known to be written or not."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from ..scalar_types import UNSIGNED
from ..text.syntax import Module, Variable

BASE = 1 << 33  # no address below this one is valid
GUARD = 4096  # bytes between allocations, at least
ALIGN = 256


@dataclass(frozen=True)
class Allocation:
    """`[start, end)` in bytes from BASE."""

    name: str
    start: int
    end: int
    shape: tuple[int, ...]
    dtype: np.dtype


class Device:
    """Holds what kernels read and write. Allocations are never freed: make a new Device per experiment."""

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []
        self.starts: list[int] = []
        self._top = GUARD
        self._symbols: dict[tuple[int, str], int] = {}
        self._modules: list[Module] = []
        self._reserve(1 << 20)

    def _reserve(self, size: int) -> None:
        old = getattr(self, "memory", np.zeros(0, np.uint8))
        old_written = getattr(self, "written", old)
        self.memory = np.zeros(size, np.uint8)
        self.memory[: len(old)] = old
        self.written = np.zeros(size, np.uint8)
        self.written[: len(old)] = old_written
        self.views = {width: self.memory.view(dtype) for width, dtype in UNSIGNED.items()}
        self.written_views = {width: self.written.view(dtype) for width, dtype in UNSIGNED.items()}

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype, name: str | None, offset: int) -> Allocation:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        start = self._top + offset
        self._top = -(-(start + size + GUARD) // ALIGN) * ALIGN
        if self._top > len(self.memory):
            self._reserve(-(-max(2 * len(self.memory), self._top) // 8) * 8)
        allocation = Allocation(name or f"buffer {len(self.allocations)}", start, start + size, shape, dtype)
        self.allocations.append(allocation)
        self.starts.append(start)
        return allocation

    def upload(self, array: np.ndarray, name: str | None = None, offset: int = 0) -> int:
        """Copies an array to the device. Its address is `offset` bytes past a multiple of 256."""
        array = np.ascontiguousarray(array)
        a = self._allocate(array.shape, array.dtype, name, offset)
        self.memory[a.start : a.end] = array.reshape(-1).view(np.uint8)
        self.written[a.start : a.end] = 0xFF
        return BASE + a.start

    def empty(self, shape: int | tuple[int, ...], dtype: object, name: str | None = None, offset: int = 0) -> int:
        """Allocates memory that is not written: reading it before a store is a finding, and yields 0xCD bytes."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        a = self._allocate(shape, np.dtype(dtype), name, offset)  # type: ignore[call-overload]
        self.memory[a.start : a.end] = 0xCD
        return BASE + a.start

    def download(self, pointer: int) -> np.ndarray:
        """Copies the allocation whose address `upload` or `empty` returned."""
        found = [a for a in self.allocations if BASE + a.start == pointer]
        if not found:
            raise ValueError(f"{pointer:#x} is not the address of an allocation")
        a = found[0]
        return self.memory[a.start : a.end].copy().view(a.dtype).reshape(a.shape)

    def find(self, start: int) -> Allocation | None:
        """Returns the last allocation that begins at or before a byte offset from BASE."""
        i = bisect_right(self.starts, start) - 1
        return self.allocations[i] if i >= 0 else None

    def symbol(self, module: Module, variable: Variable) -> int:
        """Returns the address of a `.global` or `.const` variable, placed with its initial value when first used."""
        key = (id(module), variable.name)
        if key not in self._symbols:
            from ..text.literals import variable_bytes

            self._modules.append(module)  # keeps id(module) from being reused
            self._symbols[key] = self.upload(variable_bytes(variable), variable.name)
        return self._symbols[key]
