"""Collects the faults that an execution found, one entry per kind and statement."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = (
    "out_of_bounds",  # global or shared access outside every allocation
    "misaligned",  # address not a multiple of the access's width
    "uninitialized",  # read of global or shared bytes that no thread wrote
    "race",  # shared accesses of two threads with no barrier between them, or before an asynchronous one is complete
    "divergent_barrier",  # a barrier that only part of a block reaches, or reaches at different statements
    "deadlock",  # threads that wait forever
    "partial_warp",  # a warp-wide instruction without all the lanes of its mask
    "inactive_lane",  # a shuffle that reads a lane which does not take part
    "dead_cta",  # distributed shared memory of a CTA that has, or may have, exited
    "unstarted_cta",  # distributed shared memory of a CTA that may not have started
    "launch",  # a launch the device refuses
    "trap",  # trap or a failed assertion
    "mbarrier",  # an mbarrier that is not initialized, or whose arrivals or bytes do not add up
    "timeout",  # more steps than the caller allows
)


@dataclass
class Finding:
    """One fault. `count` lanes or events showed it at this statement; the message describes the first."""

    kind: str
    message: str
    count: int = 1


class Findings:
    """Collects findings; repeated ones at the same statement only count."""

    def __init__(self) -> None:
        self.list: list[Finding] = []
        self._known: dict[tuple[str, object], Finding] = {}

    def add(self, kind: str, where: object, message: str, count: int = 1) -> None:
        """Reports `count` occurrences of a fault at `where` (an instruction, or anything that names the place)."""
        if kind not in KINDS:
            raise ValueError(f"unknown kind of finding {kind!r}")
        known = self._known.get((kind, str(where)))
        if known is not None:
            known.count += count
            return
        self._known[kind, str(where)] = finding = Finding(kind, f"{where}: {message}", count)
        self.list.append(finding)
