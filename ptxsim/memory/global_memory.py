"""Checks the access of lanes to global memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..findings import Findings
from ..lanes import Lanes
from ..text.syntax import Instruction
from .device import BASE, Device
from .traffic import TrafficMeter


class GlobalMemory:
    """A device's memory during one launch."""

    def __init__(self, device: Device, findings: Findings) -> None:
        self.device = device
        self.meter = TrafficMeter(device)
        self.name_lane: Callable[[int], str] = str
        self._findings = findings
        self.refresh()

    def refresh(self) -> None:
        """Takes in allocations that were added."""
        self._starts = np.array(self.device.starts, np.int64)
        self._ends = np.array([a.end for a in self.device.allocations], np.int64)
        self.meter.refresh()

    def access(self, lanes: Lanes, address: np.ndarray, width: int, instruction: Instruction, kind: str) -> np.ndarray:
        """Returns byte offsets in the device's memory after all checks; `kind` is load, store, atomic or prefetch.

        A lane whose access is out of bounds or misaligned is reported and sent to the unused bytes at offset 0.
        """
        offset = address - BASE
        offset, safe = self._check_bounds(lanes, offset, width, instruction, kind)
        if kind == "prefetch":
            return offset
        if len(safe):
            self._count(lanes, offset, width, kind, safe)
        if kind == "store":
            self._mark_written(offset, width)
        else:
            self._check_written(lanes, offset, width, instruction)
            if kind == "atomic":
                self._mark_written(offset, width)
        return offset

    def _check_bounds(
        self, lanes: Lanes, offset: np.ndarray, width: int, instruction: Instruction, kind: str
    ) -> tuple[np.ndarray, list[tuple[int, np.ndarray | None]]]:
        """Returns offsets, and per touched allocation the lanes that touch it (None: all)."""
        low, high = int(offset.min()), int(offset.max())
        i = int(np.searchsorted(self._starts, low, "right")) - 1
        misaligned = (offset & (width - 1)).any()
        if i >= 0 and high + width <= self._ends[i] and not misaligned:
            return offset, [(i, None)]
        if not len(self._starts):
            which, bad = np.zeros(lanes.count, np.int64), np.ones(lanes.count, bool)
        else:
            which = np.searchsorted(self._starts, offset, "right") - 1
            bad = (which < 0) | (offset + width > self._ends[np.maximum(which, 0)])
        crooked = ~bad & (offset & (width - 1) != 0)
        for kind_found, lanes_found in (("out_of_bounds", bad), ("misaligned", crooked)):
            if lanes_found.any():
                first = int(np.argmax(lanes_found))
                where = f"{kind} of {width} bytes at {self._describe(int(offset[first]))}"
                message = f"{self.name_lane(lanes.index[first])}: {where}"
                self._findings.add(kind_found, instruction, message, int(lanes_found.sum()))
        refused = bad | crooked
        offset = np.where(refused, 0, offset)
        touched = [(int(w), (which == w) & ~refused) for w in np.unique(which[~refused])]
        return offset, touched

    def _describe(self, offset: int) -> str:
        allocation = self.device.find(offset)
        if allocation is None:
            return f"address {offset + BASE:#x}, below every allocation"
        return f"{allocation.name}+{offset - allocation.start} of {allocation.end - allocation.start} bytes"

    def _count(
        self, lanes: Lanes, offset: np.ndarray, width: int, kind: str, touched: list[tuple[int, np.ndarray | None]]
    ) -> None:
        for i, chosen in touched:
            where = offset if chosen is None else offset[chosen]
            warp = lanes.warp_of if chosen is None else lanes.warp_of[chosen]
            if kind != "store":
                self.meter.count(i, where, width, warp, False)
            if kind != "load":
                self.meter.count(i, where, width, warp, True)

    def _mark_written(self, offset: np.ndarray, width: int) -> None:
        unit = min(width, 8)
        view = self.device.written_views[unit]
        for part in range(width // unit):
            view[offset // unit + part] = ~view.dtype.type(0)

    def _check_written(self, lanes: Lanes, offset: np.ndarray, width: int, instruction: Instruction) -> None:
        unit = min(width, 8)
        view = self.device.written_views[unit]
        full = ~view.dtype.type(0)
        first = offset // unit
        unwritten = view[first] != full
        for part in range(1, width // unit):
            unwritten |= view[first + part] != full
        unwritten &= offset != 0  # already reported
        if unwritten.any():
            i = int(np.argmax(unwritten))
            message = f"{self.name_lane(lanes.index[i])} reads {self._describe(int(offset[i]))}, never written"
            self._findings.add("uninitialized", instruction, message, int(unwritten.sum()))
