"""Describes the geometry of a wave of blocks, and sets of its lanes."""

from __future__ import annotations

from functools import cached_property

import numpy as np

WARP = 32


class Geometry:
    """Lanes of consecutive blocks, warp by warp.

    A block's last warp is padded with lanes that never run, so that `lane // 32` is a warp and `lane % 32` a lane of it
    for every block size.
    """

    def __init__(self, block: tuple[int, int, int], ctas: int, cluster: int) -> None:
        self.block = block
        self.threads = block[0] * block[1] * block[2]
        self.ctas = ctas
        self.cluster = cluster
        self.warps_per_cta = -(-self.threads // WARP)
        self.lanes_per_cta = self.warps_per_cta * WARP
        self.warps_per_cluster = self.warps_per_cta * cluster
        self.warps = self.warps_per_cta * ctas
        self.lanes = self.warps * WARP
        lane = np.arange(self.lanes)
        self.warp_of = lane // WARP
        self.cta_of = lane // self.lanes_per_cta
        self.thread_of = lane % self.lanes_per_cta
        self.lane_id = lane % WARP
        self.exists = self.thread_of < self.threads
        self.warp_population = self.exists.reshape(-1, WARP).sum(1)

    def where(self, lane: int, first_cta: int) -> str:
        """Returns a lane's name, such as `block 3 thread 17`."""
        return f"block {first_cta + self.cta_of[lane]} thread {self.thread_of[lane]}"


def _as_slice(index: np.ndarray) -> slice | None:
    """Returns the slice equal to an ascending index array, if there is one: slices address registers without
    copying."""
    count, first = len(index), int(index[0])
    if count == 1:
        return slice(first, first + 1)
    step, remainder = divmod(int(index[-1]) - first, count - 1)
    if remainder or step == 0 or index[1] - first != step:
        return None
    if step == 1 or np.array_equal(index, np.arange(first, int(index[-1]) + 1, step)):
        return slice(first, int(index[-1]) + 1, step)
    return None


class Lanes:
    """An ascending, nonempty set of lanes. `sel` selects them from an array with one entry per lane.

    Only a bulk copy names a lane several times, once for each of its parts.
    """

    __slots__ = ("__dict__", "count", "geometry", "sel")

    def __init__(self, geometry: Geometry, index: np.ndarray) -> None:
        self.geometry = geometry
        self.index = index
        self.count = len(index)
        as_slice = _as_slice(index)
        self.sel = index if as_slice is None else as_slice

    def where(self, chosen: np.ndarray) -> Lanes:
        """Returns the lanes for which `chosen` (one entry per lane of this set) holds; it must hold for at least
        one."""
        return Lanes(self.geometry, self.index[chosen])

    @cached_property
    def warp_of(self) -> np.ndarray:
        """Each lane's warp."""
        return self.geometry.warp_of[self.sel]

    @cached_property
    def cta_of(self) -> np.ndarray:
        """Each lane's block."""
        return self.geometry.cta_of[self.sel]

    @cached_property
    def warps(self) -> np.ndarray:
        """The distinct warps, ascending."""
        warp = self.warp_of
        return warp[np.concatenate(([True], warp[1:] != warp[:-1]))]

    @cached_property
    def ctas(self) -> np.ndarray:
        """The distinct blocks, ascending."""
        cta = self.cta_of
        return cta[np.concatenate(([True], cta[1:] != cta[:-1]))]

    @cached_property
    def warp_starts(self) -> np.ndarray:
        """Position in `index` of each warp's first lane."""
        warp = self.warp_of
        return np.flatnonzero(np.concatenate(([True], warp[1:] != warp[:-1])))

    @cached_property
    def whole_warps(self) -> bool:
        """Whether each warp with a lane in the set has all its threads in it."""
        return bool(self.geometry.warp_population[self.warps].sum() == self.count)

    @cached_property
    def whole_ctas(self) -> bool:
        """Whether each block with a lane in the set has all its threads in it."""
        return len(self.ctas) * self.geometry.threads == self.count

    @cached_property
    def active_bits(self) -> np.ndarray:
        """For each lane, the mask of active lanes of its warp."""
        bits = self.reduce_warps(np.bitwise_or, np.left_shift(1, self.geometry.lane_id[self.sel]))
        return bits.astype(np.uint32)

    @cached_property
    def position_of_warp(self) -> np.ndarray:
        """For each lane, which of `warps` is its own."""
        return np.repeat(np.arange(len(self.warps)), np.diff(np.append(self.warp_starts, self.count)))

    def reduce_warps(self, ufunc: np.ufunc, values: np.ndarray) -> np.ndarray:
        """Reduces by `ufunc` over the active lanes of each warp, and gives each of those lanes the result."""
        return ufunc.reduceat(values, self.warp_starts)[self.position_of_warp]


def union(parts: list[Lanes]) -> Lanes:
    """Returns the union of lanes that were apart and have met again."""
    if len(parts) == 1:
        return parts[0]
    return Lanes(parts[0].geometry, np.sort(np.concatenate([part.index for part in parts])))
