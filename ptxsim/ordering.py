"""Tracks happens-before between warps, by vector clocks that barriers advance.

Every access to shared memory is stamped with its warp's clock. Warp v's access stamped t is ordered before the present
access of warp w exactly if `seen[w, v] >= t`. A barrier publishes the present time of each warp that arrives and gives
the union of all that these had seen to each warp that leaves. So a CTA barrier orders nothing between two CTAs, but an
order that passes through several barriers holds.
"""

from __future__ import annotations

import numpy as np

from .lanes import Geometry


class Ordering:
    """Clocks of all warps of a wave; warps of different clusters never order each other."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self.now = 0
        self.clock = np.zeros(geometry.warps, np.int32)
        self.seen = np.full((geometry.warps, geometry.warps_per_cluster), -1, np.int32)
        self.slot = np.arange(geometry.warps) % geometry.warps_per_cluster
        clusters = geometry.ctas // geometry.cluster
        self._arriving = np.full((clusters, geometry.warps_per_cluster), -1, np.int32)
        self._released = self._arriving.copy()
        self._pending: dict[int, np.ndarray] = {}
        per_cta = geometry.warps_per_cta
        self._own = (self.slot // per_cta * per_cta)[:, None] + np.arange(per_cta)
        self.cta_floor = np.full(geometry.warps, -1, np.int32)
        self.cluster_floor = np.full(geometry.warps, -1, np.int32)

    def _publish(self, warps: np.ndarray) -> int:
        time = self.now
        self.now += 1
        self.clock[warps] = self.now
        return time

    def _told(self, warps: np.ndarray) -> np.ndarray:
        """Returns what these warps did and saw until now.

        They do not see their own new accesses yet: some lanes may arrive later, and no lane is ordered after another
        until all have waited.
        """
        told = self.seen[warps]
        told[np.arange(len(warps)), self.slot[warps]] = self._publish(warps)
        return told

    def _refresh(self, warps: np.ndarray) -> None:
        """Keeps the oldest time that a warp has seen of its CTA and of its cluster; it lets most checks end early."""
        seen = self.seen[warps]
        self.cta_floor[warps] = np.take_along_axis(seen, self._own[warps], 1).min(1)
        self.cluster_floor[warps] = seen.min(1)

    def warp_barrier(self, warps: np.ndarray) -> None:
        """Orders the lanes of each warp, as `bar.warp.sync` does."""
        time = self._publish(warps)
        self.seen[warps, self.slot[warps]] = time
        self._refresh(warps)

    def block_arrive(self, warps: np.ndarray, barrier: int) -> None:
        """Lets these warps of one or more blocks reach a barrier that is not complete yet."""
        pending = self._pending.setdefault(barrier, np.full_like(self.seen[:: self._geometry.warps_per_cta], -1))
        np.maximum.at(pending, warps // self._geometry.warps_per_cta, self._told(warps))

    def block_release(self, cta: int, warps: np.ndarray, barrier: int) -> None:
        """Completes a barrier: the warps that waited learn what those that arrived had done and seen until then."""
        pending = self._pending[barrier]
        self.seen[warps] = np.maximum(self.seen[warps], pending[cta])
        pending[cta] = -1
        self._refresh(warps)

    def block_barrier(self, warps: np.ndarray) -> None:
        """Orders whole blocks at once, as `bar.sync` does."""
        time = self._publish(warps)
        self.seen[warps, self.slot[warps]] = time
        cta = warps // self._geometry.warps_per_cta
        starts = np.flatnonzero(np.concatenate(([True], cta[1:] != cta[:-1])))
        union = np.maximum.reduceat(self.seen[warps], starts, axis=0)
        self.seen[warps] = np.repeat(union, np.diff(np.append(starts, len(warps))), axis=0)
        self._refresh(warps)

    def cluster_arrive(self, warps: np.ndarray) -> None:
        """Notes what these warps did and saw until now, which `barrier.cluster.arrive` will release."""
        np.maximum.at(self._arriving, warps // self._geometry.warps_per_cluster, self._told(warps))

    def cluster_complete(self, clusters: np.ndarray) -> None:
        """Completes the barrier of these clusters, all of whose threads have arrived."""
        self._released[clusters] = self._arriving[clusters]

    def cluster_wait(self, warps: np.ndarray) -> None:
        """Lets these warps return from `barrier.cluster.wait`."""
        released = self._released[warps // self._geometry.warps_per_cluster]
        self.seen[warps] = np.maximum(self.seen[warps], released)
        self._refresh(warps)
