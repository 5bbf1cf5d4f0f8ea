"""Chooses the lanes that run next."""

from __future__ import annotations

import heapq

import numpy as np

from .lanes import Lanes, union


class ReadyLanes:
    """Lanes that can run, by their pc.

    Without a seed the lowest pc goes first, so that divergent paths meet again. With a seed, some warps at some pc
    go first, drawn reproducibly; diverged lanes of a warp may then stay apart until an instruction joins them.
    """

    def __init__(self, seed: int | None) -> None:
        self._lanes: dict[int, list[Lanes]] = {}
        self._heap: list[int] = []
        self._rng = None if seed is None else np.random.default_rng(seed)

    def __bool__(self) -> bool:
        return bool(self._heap)

    def push(self, pc: int, lanes: Lanes) -> None:
        """Queues these lanes to continue at `pc`."""
        if pc in self._lanes:
            self._lanes[pc].append(lanes)
        else:
            self._lanes[pc] = [lanes]
            heapq.heappush(self._heap, pc)

    def pop(self) -> tuple[int, Lanes]:
        """Takes out the lanes to run now."""
        if self._rng is not None:
            return self._pop_random(self._rng)
        pc = heapq.heappop(self._heap)
        return pc, union(self._lanes.pop(pc))

    def _pop_random(self, rng: np.random.Generator) -> tuple[int, Lanes]:
        pc = self._heap.pop(int(rng.integers(len(self._heap))))
        heapq.heapify(self._heap)
        parts = self._lanes.pop(pc)
        if len(parts) > 1 and rng.random() < 0.5:
            lanes = parts.pop(int(rng.integers(len(parts))))
            self.push(pc, union(parts))
        else:
            lanes = union(parts)
        if len(lanes.warps) == 1:
            return pc, lanes
        # One warp, about half of them, or all.
        keep = rng.random(len(lanes.warps)) < (0.0, 0.5, 1.0)[int(rng.integers(3))]
        keep[int(rng.integers(len(keep)))] = True
        if not keep.all():
            kept = keep[lanes.position_of_warp]
            self.push(pc, lanes.where(~kept))
            lanes = lanes.where(kept)
        return pc, lanes
