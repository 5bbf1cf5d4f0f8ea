"""Keeps the mbarriers in shared memory: their phases, what a phase orders, and the lanes that wait for its end.

A phase ends when its arrivals are complete and its bytes are balanced: those that arrivals expect, and those that
asynchronous operations have written. An asynchronous operation writes at once here, but what it writes is ordered only
before lanes that have waited for the phase.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .lanes import Lanes

if TYPE_CHECKING:
    from .machine import Machine
    from .opcodes.registry import Next
    from .text.syntax import Instruction

_LARGEST = (1 << 20) - 1  # arrivals or bytes of a phase
_TRIES = 2  # failed waits without progress, after which lanes are in a deadlock


@dataclass
class _Mbarrier:
    """One mbarrier. The vectors are rows of `Ordering.seen`."""

    expected: int  # arrivals of each phase
    pending: int  # arrivals that this phase lacks
    owner: int  # the lane that initialized it
    arriving: np.ndarray  # what the arrivals and bytes of this phase release
    released: np.ndarray  # what those of the phase before have released
    bytes: int = 0  # that this phase lacks
    phase: int = 0
    fenced: bool = False  # other blocks of the cluster may use it


class Mbarriers:
    """All mbarriers of a wave, by their place in its shared memory."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._results: dict[int, np.ndarray] = {}

    def start(self) -> None:
        """Begins a wave: there is no mbarrier, and no lane waits."""
        self._known: dict[int, _Mbarrier] = {}
        self._failed = 0
        lanes = self._machine.geometry.lanes
        self.wait_pc = np.full(lanes, -1)
        self._wait_place, self._wait_phase = np.zeros((2, lanes), np.int64)

    def waiting(self) -> np.ndarray:
        """Returns the lanes that wait."""
        return np.flatnonzero(self.wait_pc >= 0)

    def initialize(self, lanes: Lanes, place: np.ndarray, count: np.ndarray, instruction: Instruction) -> None:
        """Makes mbarriers whose phases take `count` arrivals."""
        nothing = np.full(self._machine.shared.ordering.seen.shape[1], -1, np.int32)
        for lane, at, arrivals in zip(lanes.index.tolist(), place.tolist(), count.tolist(), strict=True):
            if not 0 < arrivals <= _LARGEST:
                self._report(instruction, lane, f"a phase of {arrivals} arrivals, must be 1 to {_LARGEST}")
            self._known[at] = _Mbarrier(arrivals, arrivals, lane, nothing.copy(), nothing)

    def invalidate(self, lanes: Lanes, place: np.ndarray, instruction: Instruction) -> None:
        """Ends mbarriers."""
        for i, at in enumerate(place.tolist()):
            if self._find(at, int(lanes.index[i]), instruction) is not None:
                del self._known[at]

    def fence(self, lanes: Lanes) -> None:
        """Lets other blocks of the cluster use what these lanes have initialized."""
        owners = set(lanes.index.tolist())
        for mbarrier in self._known.values():
            mbarrier.fenced |= mbarrier.owner in owners

    def arrive(
        self, lanes: Lanes, place: np.ndarray, count: np.ndarray, expected_bytes: np.ndarray, instruction: Instruction
    ) -> np.ndarray:
        """Lets each lane expect bytes and then arrive `count` times, and returns the phases."""
        told = self._machine.shared.ordering.arrival(lanes.warps)
        phases = np.zeros(lanes.count, np.uint64)
        self._failed = 0
        for i, (lane, at) in enumerate(zip(lanes.index.tolist(), place.tolist(), strict=True)):
            mbarrier = self._find(at, lane, instruction)
            if mbarrier is None:
                continue
            phases[i] = mbarrier.phase
            np.maximum(mbarrier.arriving, told[lanes.position_of_warp[i]], out=mbarrier.arriving)
            mbarrier.pending -= int(count[i])
            if mbarrier.pending < 0:
                self._report(instruction, lane, f"{-mbarrier.pending} arrivals more than the phase expects")
                mbarrier.pending = 0
            self._expect(mbarrier, at, int(expected_bytes[i]), lane, instruction)
        return phases

    def expect(self, lanes: Lanes, place: np.ndarray, expected_bytes: np.ndarray, instruction: Instruction) -> None:
        """Lets the present phases expect more bytes."""
        for i, at in enumerate(place.tolist()):
            lane = int(lanes.index[i])
            mbarrier = self._find(at, lane, instruction)
            if mbarrier is not None:
                self._expect(mbarrier, at, int(expected_bytes[i]), lane, instruction)

    def complete(self, lanes: Lanes, place: np.ndarray, written: np.ndarray, instruction: Instruction) -> None:
        """Counts the bytes that each lane's asynchronous operation has written, at its mbarrier."""
        told = self._machine.shared.ordering.completion(lanes.warps)
        for at in np.unique(place).tolist():
            here = place == at
            lane = int(lanes.index[np.argmax(here)])
            mbarrier = self._find(at, lane, instruction)
            if mbarrier is None:
                continue
            released = told[np.unique(lanes.position_of_warp[here])].max(0)
            np.maximum(mbarrier.arriving, released, out=mbarrier.arriving)
            self._expect(mbarrier, at, -int(written[here].sum()), lane, instruction)

    def _expect(self, mbarrier: _Mbarrier, place: int, more: int, lane: int, instruction: Instruction) -> None:
        mbarrier.bytes += more
        if abs(mbarrier.bytes) > _LARGEST:
            self._report(instruction, lane, f"a phase of {mbarrier.bytes} bytes, must be at most {_LARGEST}")
        if mbarrier.pending or mbarrier.bytes:
            return
        mbarrier.phase += 1
        mbarrier.pending, self._failed = mbarrier.expected, 0
        mbarrier.released, mbarrier.arriving = mbarrier.arriving, np.full_like(mbarrier.arriving, -1)
        waiting = self.waiting()
        free = waiting[(self._wait_place[waiting] == place) & (self._wait_phase[waiting] < mbarrier.phase)]
        if len(free):
            self._machine.shared.ordering.acquire(Lanes(self._machine.geometry, free).warps, mbarrier.released)
            self._resume(free, True)

    def _resume(self, index: np.ndarray, result: bool) -> None:
        for pc in np.unique(self.wait_pc[index]).tolist():
            lanes = Lanes(self._machine.geometry, index[self.wait_pc[index] == pc])
            self.wait_pc[lanes.index] = -1
            self._results[pc][lanes.sel] = result
            self._machine.push(pc + 1, lanes)

    def wait(
        self, pc: int, lanes: Lanes, place: np.ndarray, phase: np.ndarray, is_parity: bool, result: np.ndarray
    ) -> Next:
        """Lets lanes wait for the end of a phase, given by number or parity; `result` gets whether it has ended.

        A lane whose phase has not ended waits, as if it tried again and again. It gets False only when no other lane
        can run.
        """
        self._results[pc] = result
        done = np.ones(lanes.count, bool)
        instruction = self._machine.code[pc][1]
        ordering = self._machine.shared.ordering
        for at in np.unique(place).tolist():
            here = np.flatnonzero(place == at)
            index = lanes.index[here]
            mbarrier = self._find(at, int(index[0]), instruction)
            if mbarrier is None:
                continue
            ended = (mbarrier.phase - phase[here]) & 1 == 1 if is_parity else phase[here] < mbarrier.phase
            done[here] = ended
            if ended.any():
                ordering.acquire(Lanes(self._machine.geometry, index[ended]).warps, mbarrier.released)
            self._wait_place[index], self._wait_phase[index] = at, mbarrier.phase
        if done.all():
            result[lanes.sel] = True
            return pc + 1, lanes
        self.wait_pc[lanes.where(~done).index] = pc
        if not done.any():
            return None
        lanes = lanes.where(done)
        result[lanes.sel] = True
        return pc + 1, lanes

    def give_up(self) -> bool:
        """Returns from all waits with False, when no lane can run; returns whether that is worth trying."""
        waiting = self.waiting()
        if not len(waiting) or self._failed == _TRIES:
            return False
        self._failed += 1
        self._resume(waiting, False)
        return True

    def after_exit(self, cta: int) -> None:
        """Checks the mbarriers of a block whose last thread has exited."""
        shared = self._machine.shared
        for at in [at for at in self._known if at // shared.stride == cta]:
            mbarrier = self._known[at]
            if mbarrier.bytes:
                what = "expects {} bytes more" if mbarrier.bytes > 0 else "has got {} bytes more than it expects"
                where = f"the mbarrier at shared+{at % shared.stride}"
                self._report(where, mbarrier.owner, f"its block exits while a phase {what.format(abs(mbarrier.bytes))}")

    def _find(self, place: int, lane: int, instruction: Instruction) -> _Mbarrier | None:
        mbarrier, cta_of = self._known.get(place), self._machine.geometry.cta_of
        if mbarrier is None:
            self._report(instruction, lane, "no mbarrier has been initialized there")
        elif not mbarrier.fenced and cta_of[mbarrier.owner] != cta_of[lane]:
            self._report(instruction, lane, "no fence.mbarrier_init follows the mbarrier's initialization")
        return mbarrier

    def _report(self, where: object, lane: int, message: str) -> None:
        self._machine.findings.add("mbarrier", where, f"{self._machine.name_lane(lane)}: {message}")
