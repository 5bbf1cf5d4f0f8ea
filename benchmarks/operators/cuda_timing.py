"""Times calls on a GPU by CUDA events, from cold or warm L2 caches, and by CUDA graph replay."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..harness.timing import FEWEST, LONGEST_CALL, Method, turns

COLD_CACHES = 5  # L2 caches' worth of other data read before a call
HEAD_START = 200_000  # GPU cycles, about 0.1 ms, that the host gets to enqueue a call before the GPU reaches it


class Clock(Protocol):
    """Times a call: `CudaClock` on a GPU, `CpuClock` in a dry run."""

    def cool(self) -> None:
        """Removes the inputs of all calls from the cache."""

    def seconds(self, before: Callable[[], object], call: Callable[[], object]) -> float:
        """Returns the seconds of `call` right after `before`, which is not timed."""

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        """Returns a function that replays the launches of `call`."""


class CpuClock:
    """Times by the wall clock in a dry run without a GPU; it has no cache to cool and no launch to capture."""

    def __init__(self) -> None:
        self.cooled = 0

    def cool(self) -> None:
        """Does nothing."""
        self.cooled += 1

    def seconds(self, before: Callable[[], object], call: Callable[[], object]) -> float:
        """Returns the seconds of `call` by the wall clock, right after `before`."""
        before()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        """Returns `call` itself."""
        return call


@dataclass
class CudaClock:
    """Times by events on the current stream. Host time below the head start is hidden."""

    l2_bytes: int

    def __post_init__(self) -> None:
        self._other = torch.zeros(COLD_CACHES * self.l2_bytes // 4, dtype=torch.int32, device="cuda")

    def cool(self) -> None:
        """Reads other data than the inputs, so that the cache holds none of them."""
        self._other.amax()  # a read: a write would leave lines to be written back while the call runs

    def seconds(self, before: Callable[[], object], call: Callable[[], object]) -> float:
        """Returns the seconds of `call` by events, right after `before`."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before()
        torch.cuda._sleep(HEAD_START)
        start.record()
        result = call()
        end.record()
        end.synchronize()
        del result
        return float(start.elapsed_time(end)) * 1e-3

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        """Returns a function that replays the CUDA graph of `call`."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()

        def replay() -> object:
            graph.replay()
            return result

        return replay


def copy_rate(clock: Clock, megabytes: int, device: str) -> float:
    """Returns the GB/s of the fastest of 20 copies on the device, bytes read and written: the limit of moving data.

    Args:
        clock: Times the copies.
        megabytes: Size of a copy.
        device: "cuda" or "cpu".
    """
    source = torch.zeros(megabytes * 2**18, dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    fastest = min(clock.seconds(clock.cool, lambda: target.copy_(source)) for _ in range(20))
    return 2 * source.numel() * 4 / fastest / 1e9


def time_rounds(methods: Sequence[Method], clock: Clock, cache: str, *, repetitions: int, seconds: float) -> None:
    """Fills `seconds` of each method without a note. The first call of a method is checked and not counted.

    Rounds in random order, as in `timing.time_interleaved`; slow methods get fewer repetitions, at least 3. A
    method that does not fit in the GPU's memory is left out, and its note says so.

    Args:
        methods: The methods to time.
        clock: Times the calls.
        cache: "cold" or "warm".
        repetitions: Calls of each method.
        seconds: Time for all methods together.
    """
    share = seconds / max(1, len(methods))
    counts: dict[int, int] = {}
    for method in methods:
        if method.note:
            continue
        try:
            result = method.call()
            if method.check:
                method.check(result)
            del result
            lasted = clock.seconds(clock.cool, method.call)
        except torch.OutOfMemoryError:
            method.note = "left out: not enough GPU memory"
            torch.cuda.empty_cache()
            continue
        if lasted > LONGEST_CALL:
            method.note = f"left out: one call takes {lasted:.0f} s"
            continue
        counts[id(method)] = min(repetitions, max(FEWEST, int(share / max(lasted, 1e-6))))
    for method in turns(methods, counts, repetitions):
        before = clock.cool if cache == "cold" else method.call
        method.seconds.append(clock.seconds(before, method.call))
