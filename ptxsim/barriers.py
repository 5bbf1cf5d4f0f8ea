"""Keeps, for the barriers of blocks and clusters, the lanes that have arrived and those that wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .lanes import WARP, Lanes

if TYPE_CHECKING:
    from .machine import Machine

_BARRIERS = 16


class BlockBarriers:
    """Barriers of blocks: `bar.sync`, `bar.arrive` and `bar.red`."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self._geometry = machine, machine.geometry
        self._reductions: dict[int, Callable[[Lanes, np.ndarray, np.ndarray], None]] = {}

    def start(self) -> None:
        """Begins a wave: no lane waits."""
        lanes, ctas = self._geometry.lanes, self._geometry.ctas
        self.wait_pc = np.full(lanes, -1)
        self._wait_id = np.full(lanes, -1)
        self._contribution = np.zeros(lanes, bool)
        self._arrived = np.zeros((ctas, _BARRIERS), np.int64)
        self._expected = np.zeros((ctas, _BARRIERS), np.int64)  # 0: the whole block

    def waiting(self) -> np.ndarray:
        """Returns the lanes that wait."""
        return np.flatnonzero(self._wait_id >= 0)

    def on_release(self, pc: int, reduce: Callable[[Lanes, np.ndarray, np.ndarray], None]) -> None:
        """Registers `reduce(lanes, true contributions, participants)` for lanes that leave the `bar.red` at `pc`."""
        self._reductions[pc] = reduce

    def arrive(
        self, pc: int, lanes: Lanes, barrier: int, count: int, contribution: np.ndarray | None, wait: bool
    ) -> bool:
        """Lets lanes reach barrier `barrier` of `count` threads (0: all), and returns whether they continue at once."""
        threads = self._geometry.threads
        if wait and lanes.whole_ctas and count in (0, threads):
            self._machine.shared.ordering.block_barrier(lanes.warps)
            if contribution is not None:
                self._reduce(pc, lanes, contribution)
            return True
        if not 0 <= barrier < _BARRIERS:
            raise NotImplementedError(f"barrier {barrier}")
        ctas, counts = np.unique(lanes.cta_of, return_counts=True)
        self._arrived[ctas, barrier] += counts
        self._expected[ctas, barrier] = count
        self._machine.shared.ordering.block_arrive(lanes.warps, barrier)
        if wait:
            self.wait_pc[lanes.index], self._wait_id[lanes.index] = pc, barrier
            self._contribution[lanes.index] = False if contribution is None else contribution
        self._release_complete(ctas, barrier)
        return not wait

    def _release_complete(self, ctas: np.ndarray, barrier: int) -> None:
        alive = self._machine.shared.alive
        arrived, expected = self._arrived[ctas, barrier], self._expected[ctas, barrier]
        wanted = np.where(expected > 0, expected, alive[ctas])
        for cta in ctas[(arrived > 0) & (arrived >= wanted)]:
            self._release(int(cta), barrier)

    def _release(self, cta: int, barrier: int) -> None:
        geometry, machine = self._geometry, self._machine
        start = cta * geometry.lanes_per_cta
        lanes = start + np.flatnonzero(self._wait_id[start : start + geometry.lanes_per_cta] == barrier)
        machine.shared.ordering.block_release(cta, np.unique(lanes // WARP), barrier)
        whole_block = self._expected[cta, barrier] == 0
        arrived = int(self._arrived[cta, barrier])
        pcs = self.wait_pc[lanes].copy()
        contribution = self._contribution[lanes]
        self._arrived[cta, barrier] = 0
        self.wait_pc[lanes] = self._wait_id[lanes] = -1
        distinct = np.unique(pcs)
        if whole_block and len(lanes):
            instruction = machine.code[distinct[0]][1]
            block = machine.name_lane(int(lanes[0])).split(" thread")[0]
            if arrived < geometry.threads:
                gone = geometry.threads - arrived
                machine.findings.add(
                    "divergent_barrier", instruction, f"{block}: {arrived} threads reach it, {gone} have exited"
                )
            elif len(distinct) > 1:
                others = "; ".join(str(machine.code[pc][1]) for pc in distinct[1:])
                machine.findings.add("divergent_barrier", instruction, f"{block}: other threads wait at {others}")
        for pc in distinct:
            group = Lanes(geometry, lanes[pcs == pc])
            if pc in self._reductions:
                total, participants = np.array([contribution.sum()]), np.array([len(lanes)])
                self._reductions[pc](group, np.repeat(total, group.count), np.repeat(participants, group.count))
            machine.push(int(pc) + 1, group)

    def _reduce(self, pc: int, lanes: Lanes, contribution: np.ndarray) -> None:
        true = np.bincount(lanes.cta_of, contribution, self._geometry.ctas).astype(np.int64)
        self._reductions[pc](lanes, true[lanes.cta_of], np.full(lanes.count, self._geometry.threads))

    def after_exit(self, lanes: Lanes) -> None:
        """Releases barriers that the exit of these threads has completed."""
        ctas = lanes.ctas
        for barrier in np.flatnonzero(self._arrived[ctas].any(0)):
            self._release_complete(ctas, int(barrier))


class ClusterBarriers:
    """`barrier.cluster.arrive` and `.wait`. Exited threads count as arrived, as the ISA says."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self._geometry = machine, machine.geometry

    def start(self) -> None:
        """Begins a wave: no lane has arrived."""
        clusters = self._geometry.ctas // self._geometry.cluster
        self.wait_pc = np.full(self._geometry.lanes, -1)
        self._phase = np.zeros(self._geometry.lanes, np.int64)  # the phase whose completion a lane will wait for
        self._completed = np.zeros(clusters, np.int64)
        self._arrived = np.zeros(clusters, np.int64)

    def waiting(self) -> np.ndarray:
        """Returns the lanes that wait."""
        return np.flatnonzero(self.wait_pc >= 0)

    def arrive(self, lanes: Lanes) -> None:
        """Lets lanes arrive that will wait later."""
        self._machine.shared.ordering.cluster_arrive(lanes.warps)
        clusters, counts = np.unique(lanes.cta_of // self._geometry.cluster, return_counts=True)
        self._phase[lanes.index] = self._completed[lanes.cta_of // self._geometry.cluster] + 1
        self._arrived[clusters] += counts
        self._complete(clusters)

    def wait(self, pc: int, lanes: Lanes) -> Lanes | None:
        """Returns the lanes that may continue; the others wait."""
        done = self._completed[lanes.cta_of // self._geometry.cluster] >= self._phase[lanes.index]
        if not done.all():
            blocked = lanes.where(~done)
            self.wait_pc[blocked.index] = pc
            if not done.any():
                return None
            lanes = lanes.where(done)
        self._machine.shared.ordering.cluster_wait(lanes.warps)
        return lanes

    def _complete(self, clusters: np.ndarray) -> None:
        alive = self._machine.shared.alive.reshape(-1, self._geometry.cluster).sum(1)
        complete = clusters[(alive[clusters] > 0) & (self._arrived[clusters] >= alive[clusters])]
        if not len(complete):
            return
        self._completed[complete] += 1
        self._arrived[complete] = 0
        self._machine.shared.ordering.cluster_complete(complete)
        waiting = self.waiting()
        if not len(waiting):
            return
        free = waiting[
            self._completed[self._geometry.cta_of[waiting] // self._geometry.cluster] >= self._phase[waiting]
        ]
        for pc in np.unique(self.wait_pc[free]):
            lanes = Lanes(self._geometry, free[self.wait_pc[free] == pc])
            self.wait_pc[lanes.index] = -1
            self._machine.shared.ordering.cluster_wait(lanes.warps)
            self._machine.push(int(pc) + 1, lanes)

    def after_exit(self, lanes: Lanes) -> None:
        """Completes clusters whose other threads have all arrived, now that these have exited."""
        cluster = lanes.cta_of // self._geometry.cluster
        had_arrived = self._phase[lanes.index] > self._completed[cluster]
        np.subtract.at(self._arrived, cluster[had_arrived], 1)
        self._complete(np.unique(cluster))
