"""Holds the shared memory of all blocks of a wave, and checks bounds, initialization and the lifetime of each block.

Addresses: an offset in the block's own window, or `(rank + 1) << RANK_SHIFT | offset` for a block of the cluster, as
`mapa` makes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from ..findings import Findings
from ..lanes import Geometry, Lanes
from ..ordering import Ordering
from ..scalar_types import DTYPES, UNSIGNED
from ..text.syntax import Instruction
from .races import RaceCheck

RANK_SHIFT = 24
WORD = 4
_STATIC = re.compile(r"\[\s*([^\s+%\]]+)\s*(?:\+\s*(\w+))?\s*\]")  # the address of a variable, without a register
_PAD = 32  # widest access; every block's window is a multiple of it


class SharedMemory:
    """`size` bytes per block, which each launch sets, at most `capacity`. The narrowest access among the kernel's
    `instructions` is the resolution of the race check."""

    def __init__(self, geometry: Geometry, capacity: int, instructions: Sequence[Instruction]) -> None:
        self._geometry = geometry
        self.size = capacity
        self.stride = max(-(-capacity // _PAD) * _PAD, _PAD)
        self._granule = narrowest_access(instructions)
        self._asynchronous = has_asynchronous_access(instructions)
        self.bytes = np.zeros(geometry.ctas * self.stride + _PAD, np.uint8)
        self.views = {width: self.bytes.view(dtype) for width, dtype in UNSIGNED.items()}

    def start(self, findings: Findings, name_lane: Callable[[int], str]) -> None:
        """Forgets everything: the blocks of a new wave begin. Contents are 0xFF bytes, NaN in every float format."""
        self.bytes.fill(0xFF)
        self.ordering = Ordering(self._geometry, self._asynchronous)
        self._findings, self._name_lane = findings, name_lane
        self._races = RaceCheck(self._geometry, self.stride, self._granule, self.ordering, findings, name_lane)
        self._alive = np.full(self._geometry.ctas, self._geometry.threads)
        # Clock of each warp's last access to each other block: [block, warp within the cluster].
        self._remote = np.full((self._geometry.ctas, self.ordering.seen.shape[1]), -1, np.int32)
        self._any_remote = False

    def access(self, lanes: Lanes, address: np.ndarray, width: int, instruction: Instruction, kind: str) -> np.ndarray:
        """Returns byte offsets into `bytes` after all checks; a lane in error gets the unused bytes at the end."""
        # 1. An address with a rank belongs to another block of the cluster.
        cta = lanes.cta_of
        offset = address
        if int(address.max()) >> RANK_SHIFT:
            rank = (address >> RANK_SHIFT) - 1
            offset = address & ((1 << RANK_SHIFT) - 1)
            cluster = self._geometry.cluster
            target = np.where(rank >= 0, cta // cluster * cluster + rank, cta)
            outside = (rank >= cluster) | (rank < -1)
            target, offset = np.where(outside, cta, target), np.where(outside, -1, offset)
            if (target != cta).any():
                self._check_lives(lanes, target, instruction, kind)
            cta = target
        # 2. Accesses out of bounds and misaligned ones are findings, and go nowhere.
        bad = offset < 0
        bad |= offset > self.size - width
        crooked = (offset & (width - 1)) != 0
        if np.count_nonzero(bad) or np.count_nonzero(crooked):
            crooked &= ~bad
            for kind_found, found in (("out_of_bounds", bad), ("misaligned", crooked)):
                if found.any():
                    i = int(np.argmax(found))
                    where = f"{kind} of {width} bytes at shared+{int(offset[i])} of {self.size}"
                    message = f"{self._name_lane(lanes.index[i])}: {where}"
                    self._findings.add(kind_found, instruction, message, int(found.sum()))
            good = ~(bad | crooked)
            place = np.full(lanes.count, self._geometry.ctas * self.stride)
            if good.any():
                lanes = lanes.where(good)
                place[good] = cta[good] * self.stride + offset[good]
                self._races.check(lanes, place[good], width, cta[good], instruction, kind)
            return place
        # 3. The races of all others are checked.
        place = cta * self.stride + offset
        self._races.check(lanes, place, width, cta, instruction, kind)
        return place

    def _check_lives(self, lanes: Lanes, target: np.ndarray, instruction: Instruction, kind: str) -> None:
        """Checks that distributed shared memory is used between the start of its block and its last thread's exit."""
        remote = target != lanes.cta_of
        warp, cta, index = lanes.warp_of[remote], target[remote], lanes.index[remote]
        per_cta = self._geometry.warps_per_cta
        seen = self.ordering.seen[:, : self._geometry.warps_per_cluster]
        seen = seen.reshape(self._geometry.warps, self._geometry.cluster, per_cta)
        unstarted = (seen[warp, cta % self._geometry.cluster] < 0).all(1)
        dead = self._alive[cta] == 0
        for kind_found, found, why in (
            ("unstarted_cta", unstarted, "no cluster barrier says that it has started"),
            ("dead_cta", dead, "all its threads have exited"),
        ):
            if found.any():
                i = int(np.argmax(found))
                block = self._name_lane(int(cta[i]) * self._geometry.lanes_per_cta).split(" thread")[0]
                message = f"{self._name_lane(index[i])}: {kind} in shared memory of {block}: {why}"
                self._findings.add(kind_found, instruction, message, int(found.sum()))
        column = self.ordering.slot[warp] + kind.startswith("async") * self._geometry.warps_per_cluster
        self._remote[cta, column] = self.ordering.clock[warp]
        self._any_remote = True
        self._last_remote = instruction

    def exit(self, lanes: Lanes) -> list[int]:
        """Ends threads, and returns the blocks that have no more.

        Every remote access to a block must be ordered before the exit of its last thread.
        """
        ctas, counts = np.unique(lanes.cta_of, return_counts=True)
        self._alive[ctas] -= counts
        ended: list[int] = ctas[self._alive[ctas] == 0].tolist()
        for cta in ended if self._any_remote else []:
            warps = slice(cta * self._geometry.warps_per_cta, (cta + 1) * self._geometry.warps_per_cta)
            unfinished = self._remote[cta] > self.ordering.seen[warps].max(0)
            if unfinished.any():
                slot = int(np.argmax(unfinished)) % self._geometry.warps_per_cluster
                cluster = cta // self._geometry.cluster
                lane = (cluster * self._geometry.warps_per_cluster + slot) * 32
                gone = self._name_lane(int(cta) * self._geometry.lanes_per_cta).split(" thread")[0]
                reader = self._name_lane(lane).split(" thread")[0]
                message = f"{gone} may exit before {reader} is done with its shared memory: no barrier between"
                self._findings.add("dead_cta", self._last_remote, message)
        return ended

    @property
    def alive(self) -> np.ndarray:
        """Number of threads per block that have not exited."""
        return self._alive


def narrowest_access(instructions: Sequence[Instruction]) -> int:
    """Returns the bytes of the narrowest access that may touch shared memory.

    Accesses narrower than a word, such as those of a flag, count as one of their word if their addresses are static and
    no two of them lie in one word. All accesses that meet in that word then conflict in any case, and 16-byte accesses
    to everything else have four parts to check, not sixteen.
    """
    narrowest, flags = 16, dict[tuple[str, int], set[tuple[int, int]]]()
    for instruction in instructions:
        if instruction.opcode == "mbarrier":
            narrowest = min(narrowest, 8)
        if instruction.opcode not in ("ld", "st", "atom", "red"):
            continue
        if any(m.split("::")[0] in ("global", "param", "const", "local") for m in instruction.modifiers):
            continue
        type_name = next((m for m in reversed(instruction.modifiers) if m in DTYPES), "b8")
        vector = next((int(m[1]) for m in instruction.modifiers if m in ("v2", "v4", "v8")), 1)
        width = DTYPES[type_name].itemsize * vector
        place = _STATIC.search(" ".join(instruction.operands))
        if width < WORD and place is not None:
            offset = int(place[2] or "0", 0)
            flags.setdefault((place[1], offset // WORD), set()).add((offset, width))
            width = WORD
        narrowest = min(narrowest, width)
    crowded = [width for places in flags.values() if len(places) > 1 for _, width in places]
    return min([narrowest, *crowded])


def has_asynchronous_access(instructions: Sequence[Instruction]) -> bool:
    """Returns whether some access to shared memory completes later, at an mbarrier."""
    return any("mbarrier::complete_tx::bytes" in instruction.modifiers for instruction in instructions)
