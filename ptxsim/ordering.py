"""Tracks happens-before between warps, by vector clocks that barriers advance.

Every access to shared memory is stamped with its warp's clock. Warp v's access stamped t is ordered before the present
access of warp w exactly if `seen[w, v] >= t`. A barrier publishes the present time of each warp that arrives and gives
the union of all that these had seen to each warp that leaves. So a CTA barrier orders nothing between two CTAs, but an
order that passes through several barriers holds.

The operations that a warp only begins, such as st.async, have a column of their own behind those of the warps. Only the
phase of an mbarrier passes it on, so no other barrier orders what they write.
"""

from __future__ import annotations

import numpy as np

from .lanes import Geometry


class Ordering:
    """Clocks of all warps of a wave; warps of different clusters never order each other.

    `asynchronous` says whether the kernel has operations that complete later.
    """

    def __init__(self, geometry: Geometry, asynchronous: bool = False) -> None:
        self._geometry, self.asynchronous = geometry, asynchronous
        self.now = 0
        self.clock = np.zeros(geometry.warps, np.int32)
        columns = geometry.warps_per_cluster * (2 if asynchronous else 1)
        self.seen = np.full((geometry.warps, columns), -1, np.int32)
        self.slot = np.arange(geometry.warps) % geometry.warps_per_cluster
        clusters = geometry.ctas // geometry.cluster
        self._arriving = np.full((clusters, columns), -1, np.int32)
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
        self.cluster_floor[warps] = seen[:, : self._geometry.warps_per_cluster].min(1)

    def arrival(self, warps: np.ndarray) -> np.ndarray:
        """Returns, per warp, what an arrival at an mbarrier releases."""
        return self._told(warps)

    def completion(self, warps: np.ndarray) -> np.ndarray:
        """Returns, per warp, what the completion of the operations that it has begun until now releases.

        Those are the operations themselves, and what was ordered before their warp by its last barrier.
        """
        told = self.seen[warps]
        told[np.arange(len(warps)), self._geometry.warps_per_cluster + self.slot[warps]] = self._publish(warps)
        return told

    def acquire(self, warps: np.ndarray, released: np.ndarray) -> None:
        """Lets these warps see what the completed phase of an mbarrier has released."""
        self.seen[warps] = np.maximum(self.seen[warps], released)
        self._refresh(warps)

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
