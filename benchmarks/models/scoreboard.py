"""Estimates the cycles of a list of PTX statements that one warp executes in order, by a table of latencies.

A statement issues when its sources are ready and the one before it has issued, as a warp of a GPU does. PTX stands for
the machine code that ptxas makes of it: moves and parameters are registers and cost nothing, and a division counts as
one long instruction. ptxas also moves statements away from those that they wait for, which `reordered` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from ptxsim.text.syntax import Instruction

from .latency_tables import Latencies

REGISTER = re.compile(r"%[a-z]+\d+|\bp\b")
NO_RESULT = frozenset(("st", "bra", "brx", "bar", "barrier", "ret", "exit", "prefetch", "call", "red", "fence"))
STALLING = frozenset(("bra", "brx", "call", "ret", "bar", "barrier", "fence", "membar", "mbarrier"))
DIVISIONS = frozenset(("div", "rcp", "sqrt"))
# By opcode, unless the type or the state space says otherwise.
BY_OPCODE: dict[str, Callable[[Latencies], float]] = {
    "bra": lambda table: table.branch,
    "brx": lambda table: table.branch,
    "call": lambda table: table.call,
    "ret": lambda table: table.call,
    "shfl": lambda table: table.shuffle,
    "redux": lambda table: table.reduction,
    "vote": lambda table: table.vote,
    "activemask": lambda table: table.vote,
    "ex2": lambda table: table.special_function,
    "lg2": lambda table: table.special_function,
    "rsqrt": lambda table: table.special_function,
    "fence": lambda table: table.fence,
    "membar": lambda table: table.fence,
    "st": lambda table: 1.0,
}


@dataclass(frozen=True)
class Cost:
    """Cycles of one statement: those in which nothing else of the warp issues, and those until its result is ready."""

    issue: float
    latency: float


def registers_of(instruction: Instruction) -> tuple[list[str], list[str]]:
    """Returns the registers that a statement writes, and those that it waits for."""
    names = [REGISTER.findall(operand) for operand in instruction.operands]
    first = 0 if instruction.opcode in NO_RESULT else 1
    written = list(chain(*names[:first]))
    read = list(chain(*names[first:]))
    if instruction.guard is not None:  # a register that is not written keeps its value
        read += [instruction.guard, *written]
    return written, read


def is_renaming(instruction: Instruction) -> bool:
    """Returns whether ptxas makes no instruction of a statement, but reads another register in its place."""
    return instruction.opcode in ("mov", "cvta") or "param" in instruction.modifiers


def cost_of(instruction: Instruction, table: Latencies) -> Cost:
    """Returns the cost of one statement that is no renaming."""
    opcode, modifiers = instruction.opcode, instruction.modifiers
    if opcode in ("bar", "barrier", "mbarrier"):
        return Cost(1.0, _barrier(instruction, table))
    if opcode == "ld":
        return Cost(1.0, table.device_load if "global" in modifiers else table.shared_load)
    if opcode in DIVISIONS:
        if any(word in modifiers for word in ("approx", "full")):
            product = table.integer_or_float if opcode == "div" else 0.0
            return Cost(1.0, table.special_function + product)
        return Cost(30.0, table.double_division) if "f64" in modifiers else Cost(8.0, table.float_division)
    if "f64" in modifiers:
        if opcode in ("selp", "neg", "abs"):  # on the two words
            return Cost(2.0, table.integer_or_float)
        return Cost(table.double_issue, table.double_conversion if opcode == "cvt" else table.double)
    return Cost(1.0, BY_OPCODE.get(opcode, lambda table: table.integer_or_float)(table))


def _barrier(instruction: Instruction, table: Latencies) -> float:
    modifiers = instruction.modifiers
    if instruction.opcode == "mbarrier":
        return table.async_exchange if "try_wait" in modifiers or "test_wait" in modifiers else 0.0
    if "warp" in modifiers:
        return table.warp_barrier
    if "cluster" not in modifiers:
        return table.block_barrier
    return table.cluster_barrier if "wait" in modifiers else table.fence if "release" in modifiers else 0.0


def cycles(trace: Sequence[Instruction], table: Latencies) -> float:
    """Returns the cycles from the first statement's issue until the last one's result.

    Args:
        trace: The statements in the order in which the warp executes them.
        table: The latencies.
    """
    now, end, ready = 0.0, 0.0, dict[str, float]()
    sent: float | None = None
    for instruction in trace:
        written, read = registers_of(instruction)
        arrived = max((ready.get(name, 0.0) for name in read), default=0.0)
        if is_renaming(instruction):
            ready.update(dict.fromkeys(written, arrived))
            continue
        cost = cost_of(instruction, table)
        now = max(now, arrived) + cost.issue
        finished = now + cost.latency
        if instruction.opcode == "st" and "async" in instruction.modifiers:
            sent = now
        elif sent is not None and instruction.opcode == "mbarrier" and cost.latency:  # what was sent is on its way
            finished = max(now, sent + cost.latency)
        if instruction.opcode in STALLING:  # the statements after it wait, whatever they read
            now = finished
        for name in written:
            ready[name] = finished
        end = max(end, finished if written else now)
    return end


def reordered(trace: Sequence[Instruction], table: Latencies) -> list[Instruction]:
    """Returns the statements in the order that ptxas would choose: within a block, the longest chain first.

    A block ends at a branch, a barrier or a call. Loads of a block stay behind its stores.

    Args:
        trace: The statements in the order of the PTX.
        table: The latencies.
    """
    order: list[Instruction] = []
    begin = 0
    for at, instruction in enumerate(trace):
        if instruction.opcode in STALLING or at == len(trace) - 1:
            order += _scheduled(trace[begin : at + 1], table)
            begin = at + 1
    return order


def _scheduled(block: Sequence[Instruction], table: Latencies) -> list[Instruction]:
    # 1. What each statement waits for, within the block.
    writers: dict[str, int] = {}
    before: list[list[int]] = []
    stored = -1
    for at, instruction in enumerate(block):
        written, read = registers_of(instruction)
        before.append([writers[name] for name in read if name in writers])
        if instruction.opcode in STALLING:
            before[at] = list(range(at))
        if instruction.opcode in ("ld", "st") and "param" not in instruction.modifiers:
            before[at] += [stored] if stored >= 0 else []
            stored = at if instruction.opcode == "st" else stored
        writers.update(dict.fromkeys(written, at))
    # 2. The cycles from each statement to the end of the block.
    costs = [Cost(0.0, 0.0) if is_renaming(i) else cost_of(i, table) for i in block]
    path = [cost.issue + cost.latency for cost in costs]
    for at in reversed(range(len(block))):
        for other in before[at]:
            path[other] = max(path[other], costs[other].issue + costs[other].latency + path[at])
    # 3. Of the statements whose sources are ready, the one with the longest way to go issues first.
    now, finished, waiting = 0.0, dict[int, float](), list(range(len(block)))
    order = []
    while waiting:
        free = {
            at: max((finished[other] for other in before[at]), default=0.0)
            for at in waiting
            if all(other in finished for other in before[at])
        }
        now = max(now, min(free.values()))
        at = max((at for at, ready in free.items() if ready <= now), key=lambda at: (path[at], -at))
        now += costs[at].issue
        finished[at] = now + costs[at].latency
        waiting.remove(at)
        order.append(block[at])
    return order
