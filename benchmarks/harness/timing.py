"""Times several methods comparably: in one process, interleaved, from the same state of the caches."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FEWEST = 3  # repetitions of the slowest method
LONGEST_CALL = 20.0  # seconds; a method that takes longer is left out


@dataclass
class Method:
    """One thing to time on one pair of inputs."""

    name: str
    call: Callable[[], Any]
    check: Callable[[Any], None] | None = None  # of the call's result, before anything is timed; raises
    budget: str = "any"  # "binding" or "not binding"; "any" if the time does not depend on it
    scale: float = 1.0  # the call does 1 / scale of the work
    note: str = ""  # why it is left out
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        """The median seconds of the whole work; None if nothing was timed."""
        return statistics.median(self.seconds) * self.scale if self.seconds else None

    @property
    def fastest(self) -> float | None:
        """The fewest seconds of the whole work; None if nothing was timed."""
        return min(self.seconds) * self.scale if self.seconds else None


def time_interleaved(
    methods: Sequence[Method], before: Callable[[], object], *, repetitions: int, seconds: float
) -> None:
    """Fills `seconds` of each method without a note. The first call of a method is checked and not counted.

    Each round calls every method once, in random order, so that a drift of the machine affects all methods alike. A
    method whose share of `seconds` does not allow `repetitions` calls skips rounds, evenly spread, but keeps 3 or more.

    Args:
        methods: The methods to time.
        before: Runs ahead of each call. A read of the inputs puts the caches into one state for all methods and wakes
            all threads.
        repetitions: Calls of each method.
        seconds: Time for all methods together.
    """
    share = seconds / len(methods)
    counts: dict[int, int] = {}
    for method in methods:
        if method.note:
            continue
        lasted, result = _timed(method.call)
        if method.check:
            method.check(result)
        del result
        if lasted > LONGEST_CALL:
            method.note = f"left out: one call takes {lasted:.0f} s"
            continue
        if lasted < share:  # a slower method needs no second call: the costs of a first call do not matter to it
            lasted, _ = _timed(method.call)
        counts[id(method)] = min(repetitions, max(FEWEST, int(share / lasted)))
    for method in turns(methods, counts, repetitions):
        before()
        method.seconds.append(_timed(method.call)[0])


def turns(methods: Sequence[Method], counts: Mapping[int, int], repetitions: int) -> Iterator[Method]:
    """Yields each method without a note `counts[id(method)]` times, in rounds of random order, evenly spread.

    Args:
        methods: The methods.
        counts: Calls of each method, by its id.
        repetitions: Rounds.
    """
    timed = [method for method in methods if not method.note]
    shuffle = random.Random(0).shuffle
    for turn in range(repetitions):
        shuffle(timed)
        for method in timed:
            count = counts[id(method)]
            if (turn + 1) * count // repetitions > turn * count // repetitions:
                yield method


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result
