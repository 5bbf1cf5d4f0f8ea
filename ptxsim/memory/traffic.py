"""Counts bytes and 32-byte sectors that a launch requests per allocation, before any cache; not DRAM traffic."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from ..scalar_types import UNSIGNED
from .device import Device

SECTOR = 32


@dataclass
class Traffic:
    """Traffic of one allocation. `load_sectors` sums, over warp instructions, the distinct sectors of each."""

    bytes_loaded: int = 0
    bytes_stored: int = 0
    unique_bytes_loaded: int = 0
    load_sectors: int = 0
    store_sectors: int = 0
    unique_sectors: int = 0
    widths: Counter[int] = field(default_factory=Counter)
    store_widths: Counter[int] = field(default_factory=Counter)


class TrafficMeter:
    """Counts the traffic of a launch while it runs."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._traffic: dict[int, Traffic] = {}
        self._loaded = np.zeros(0, np.uint8)
        self.refresh()

    def refresh(self) -> None:
        """Adapts to the device's memory, which may have grown."""
        if len(self._loaded) < len(self._device.memory):
            old, self._loaded = self._loaded, np.zeros(len(self._device.memory), np.uint8)
            self._loaded[: len(old)] = old
            self._views = {width: self._loaded.view(dtype) for width, dtype in UNSIGNED.items()}

    def count(self, allocation: int, offset: np.ndarray, width: int, warp: np.ndarray, store: bool) -> None:
        """Counts accesses to `width` bytes at `offset` of one allocation; the lanes are ascending in `warp`."""
        traffic = self._traffic.setdefault(allocation, Traffic())
        sectors = _distinct_sectors(offset, width, warp)
        if store:
            traffic.bytes_stored += width * len(offset)
            traffic.store_sectors += sectors
            traffic.store_widths[width] += len(offset)
            return
        traffic.bytes_loaded += width * len(offset)
        traffic.load_sectors += sectors
        traffic.widths[width] += len(offset)
        unit = min(width, 8)
        view, first = self._views[unit], offset // unit
        for part in range(width // unit):
            view[first + part] = ~view.dtype.type(0)

    def result(self) -> dict[str, Traffic]:
        """Returns the traffic by allocation name; allocations of one name are added up."""
        by_name: dict[str, Traffic] = {}
        for i, traffic in self._traffic.items():
            a = self._device.allocations[i]
            traffic.unique_bytes_loaded = int(np.count_nonzero(self._loaded[a.start : a.end]))
            first, last = a.start // SECTOR, -(-a.end // SECTOR)
            sectors = self._loaded[first * SECTOR : last * SECTOR].reshape(-1, SECTOR)
            traffic.unique_sectors = int(np.count_nonzero(sectors.any(1)))
            total = by_name.setdefault(a.name, Traffic())
            for name, value in vars(traffic).items():
                setattr(total, name, getattr(total, name) + value)
        return by_name


def _distinct_sectors(offset: np.ndarray, width: int, warp: np.ndarray) -> int:
    """Returns the distinct (warp, sector) pairs. Accesses are aligned, so one of up to 32 bytes lies in one sector."""
    key = (warp << 40) + offset // SECTOR
    step = key[1:] - key[:-1]
    if len(step) and step.min() < 0:
        key.sort()
        step = key[1:] - key[:-1]
    return 1 + int(np.count_nonzero(step))
