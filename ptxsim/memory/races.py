"""Finds data races on shared memory: conflicting accesses of two threads that no barrier orders.

Per granule of shared memory, the check keeps the last writer, the last reader, and the first reader since the last
write that is still unordered with later ones. (Two readers instead of all of them: an unordered reader can be forgotten
only between two others of the same granule that the writer is ordered with.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..findings import Findings
from ..lanes import WARP, Geometry, Lanes
from ..ordering import Ordering
from ..text.syntax import Instruction

_ATOMIC = 1 << 30  # added to the lane that made an atomic access: atomics do not race with one another
_ASYNC = 1 << 29  # added to the lane that began an asynchronous access
_LATER = 1 << 30  # added to the clock of an asynchronous access, so that no floor orders it


class _Accesses:
    """Lane and clock of the access remembered for each granule; no access has clock -1."""

    def __init__(self, count: int) -> None:
        self.clock = np.full(count, -1, np.int32)
        self.lane = np.zeros(count, np.int32)


class RaceCheck:
    """Watches every access to shared memory of a wave, and reads of bytes that were never written."""

    def __init__(
        self,
        geometry: Geometry,
        stride: int,
        granule: int,
        ordering: Ordering,
        findings: Findings,
        name_lane: Callable[[int], str],
    ) -> None:
        count = geometry.ctas * stride // granule
        self._geometry, self._stride, self._granule = geometry, stride, granule
        self._ordering, self._findings, self._name_lane = ordering, findings, name_lane
        self._writer, self._first_reader, self._last_reader = (_Accesses(count) for _ in range(3))
        self._across = np.zeros(count, bool)  # the granules that other blocks access
        self._any_across = False

    def check(
        self, lanes: Lanes, place: np.ndarray, width: int, cta: np.ndarray, instruction: Instruction, kind: str
    ) -> None:
        """Checks aligned, in-bounds accesses of `width` bytes at byte `place` of the wave's shared memory."""
        per_access = max(width // self._granule, 1)
        row = place // (per_access * self._granule)
        warp = lanes.warp_of
        ordering = self._ordering
        me, clock = lanes.index, ordering.clock[warp]
        if kind.endswith("atomic"):
            me = me + _ATOMIC
        if kind.startswith("async"):
            me, clock = me + _ASYNC, clock + np.int32(_LATER)
        access = _Rows(row, per_access, ordering.cta_floor[warp][:, None], me[:, None], warp[:, None], clock[:, None])
        if cta is not lanes.cta_of and (remote := cta != lanes.cta_of).any():
            access.mark(self._across, remote)
            self._any_across = True
        if self._any_across:
            across = access.gather(self._across)
            if np.count_nonzero(across):
                access.floor = np.where(across, ordering.cluster_floor[warp][:, None], access.floor)
        describe = (lanes, place, cta, instruction, kind)
        clock = access.gather(self._writer.clock)
        if not kind.endswith("store") and (clock < 0).any():
            self._report_unwritten(clock < 0, *describe)
        self._conflicts(access, self._writer, clock, "write", *describe)
        if kind == "load":
            self._record_read(access)
            return
        for readers in (self._first_reader, self._last_reader):
            self._conflicts(access, readers, access.gather(readers.clock), "read", *describe)
            access.scatter(readers.clock, np.int32(-1))
        access.scatter(self._writer.clock, access.clock)
        access.scatter(self._writer.lane, access.me)
        if kind.endswith("store"):
            overwritten = access.gather(self._writer.lane) != access.me
            if overwritten.any():
                self._report(overwritten, access.gather(self._writer.lane), "write", *describe)

    def _record_read(self, access: _Rows) -> None:
        access.scatter(self._last_reader.clock, access.clock)
        access.scatter(self._last_reader.lane, access.me)
        clock = access.gather(self._first_reader.clock)
        replace = clock <= access.floor
        if replace.all():
            # Backwards, so that the lowest lane is kept of those that read the same granule.
            backwards = access.backwards()
            backwards.scatter(self._first_reader.clock, backwards.clock)
            backwards.scatter(self._first_reader.lane, backwards.me)
            return
        lane = access.gather(self._first_reader.lane)
        replace |= self._ordered(access, lane, clock)
        access.scatter(self._first_reader.clock, np.where(replace, access.clock, clock))
        access.scatter(self._first_reader.lane, np.where(replace, access.me, lane))

    def _ordered(self, access: _Rows, lane: np.ndarray, clock: np.ndarray) -> np.ndarray:
        """Returns which remembered accesses are ordered before the present ones, or made by the same thread."""
        own = lane == access.me
        if own.all() and not lane[0, 0] & _ASYNC:  # most accesses: of a thread to what it alone has used
            return own
        other = lane & (_ASYNC - 1)
        slot = other // WARP % self._geometry.warps_per_cluster
        same = other == (access.me & (_ASYNC - 1))
        if not self._ordering.asynchronous:
            return (self._ordering.seen[access.warp, slot] >= clock) | same | (clock < 0)
        # What a thread has begun is not ordered before what it does next.
        later = (lane & _ASYNC) != 0
        seen = self._ordering.seen[access.warp, slot + later * self._geometry.warps_per_cluster]
        return (seen >= clock - later * _LATER) | (same & ~later) | (clock < 0)

    def _conflicts(
        self,
        access: _Rows,
        earlier: _Accesses,
        clock: np.ndarray,
        what: str,
        lanes: Lanes,
        place: np.ndarray,
        cta: np.ndarray,
        instruction: Instruction,
        kind: str,
    ) -> None:
        if (clock <= access.floor).all():
            return
        lane = access.gather(earlier.lane)
        ordered = self._ordered(access, lane, clock)
        if kind.endswith("atomic"):
            ordered |= lane >= _ATOMIC
        if not ordered.all():
            self._report(~ordered, lane, what, lanes, place, cta, instruction, kind)

    def _report(
        self,
        found: np.ndarray,
        lane: np.ndarray,
        what: str,
        lanes: Lanes,
        place: np.ndarray,
        cta: np.ndarray,
        instruction: Instruction,
        kind: str,
    ) -> None:
        i, part = np.unravel_index(int(np.argmax(found)), found.shape)
        by = int(lane[i, part])
        other = self._name_lane(by & (_ASYNC - 1))
        what = f"asynchronous {what}" if by & _ASYNC else what
        where = self._where(int(place[i]) + int(part) * self._granule, int(cta[i]))
        message = f"{self._name_lane(lanes.index[i])}: {kind} of {where} is not ordered after the {what} by {other}"
        self._findings.add("race", instruction, message, int(found.any(1).sum()))

    def _report_unwritten(
        self, found: np.ndarray, lanes: Lanes, place: np.ndarray, cta: np.ndarray, instruction: Instruction, kind: str
    ) -> None:
        i, part = np.unravel_index(int(np.argmax(found)), found.shape)
        where = self._where(int(place[i]) + int(part) * self._granule, int(cta[i]))
        message = f"{self._name_lane(lanes.index[i])}: {kind} of {where}, never written"
        self._findings.add("uninitialized", instruction, message, int(found.any(1).sum()))

    def _where(self, place: int, cta: int) -> str:
        block = self._name_lane(cta * self._geometry.lanes_per_cta).split(" thread")[0]
        return f"shared+{place - cta * self._stride} of {block}"


class _Rows:
    """One access per lane, each of `per_access` granules: rows of the tables, with what belongs to the lane."""

    def __init__(
        self, row: np.ndarray, per_access: int, floor: np.ndarray, me: np.ndarray, warp: np.ndarray, clock: np.ndarray
    ) -> None:
        self._row, self._per_access = row, per_access
        self.floor, self.me, self.warp, self.clock = floor, me, warp, clock

    def gather(self, table: np.ndarray) -> np.ndarray:
        return table.reshape(-1, self._per_access).take(self._row, axis=0)

    def scatter(self, table: np.ndarray, values: np.ndarray | np.int32) -> None:
        table.reshape(-1, self._per_access)[self._row] = values

    def mark(self, table: np.ndarray, chosen: np.ndarray) -> None:
        table.reshape(-1, self._per_access)[self._row[chosen]] = True

    def backwards(self) -> _Rows:
        return _Rows(
            self._row[::-1], self._per_access, self.floor[::-1], self.me[::-1], self.warp[::-1], self.clock[::-1]
        )
