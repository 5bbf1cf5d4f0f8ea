"""Finds the loops of a function: strongly connected parts of its control flow graph, nested ones inside.

A loop is not "a branch that points backwards": compilers move rare paths behind the end of the function, and these
return by a backward branch that closes no loop. Two edges are left out of the graph, because a converged warp never
follows them: to the lane-by-lane twin of a shuffle or barrier (BRA.DIV), and past the jump around it (BRA.CONV).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from .disassembly import Function, Instruction
from .kinds import Kind

_ENDS = ("EXIT", "RET", "BPT", "KILL")
_JUMPS = ("BRA", "BRX", "BRXU", "JMP", "JMX", "JMXU")
_ALWAYS = ("", "PT", "UPT")


@dataclass(frozen=True)
class PerPair:
    """Instructions per pair of logits; a warp's instruction counts as one for each of its 32 lanes."""

    total: float
    by_kind: dict[Kind, float]

    def __getitem__(self, kind: Kind) -> float:
        return self.by_kind.get(kind, 0.0)

    def __str__(self) -> str:
        kinds = sorted(self.by_kind.items(), key=lambda item: -item[1])
        return f"{self.total:.2f} = " + " + ".join(f"{count:.2f} {kind.value}" for kind, count in kinds)


@dataclass
class Loop:
    """One loop. Both branches of a conditional inside it count, so a rare path in the body counts as well."""

    instructions: list[Instruction]  # by address, those of the inner loops too
    depth: int  # 0: in no other loop
    inner: list[Loop] = field(default_factory=list)  # directly inside, by address

    @property
    def start(self) -> int:
        """The address of the first instruction."""
        return self.instructions[0].address

    @property
    def innermost(self) -> bool:
        return not self.inner

    @property
    def own(self) -> list[Instruction]:
        """The instructions that are in no inner loop."""
        nested = {instruction.address for loop in self.inner for instruction in loop.instructions}
        return [instruction for instruction in self.instructions if instruction.address not in nested]

    @cached_property
    def counts(self) -> Counter[Kind]:
        return Counter(instruction.kind for instruction in self.instructions)

    def widths(self, kind: Kind) -> Counter[int]:
        """Returns bits -> how many of the loads or stores of that kind move that many per lane."""
        return Counter(instruction.width for instruction in self.instructions if instruction.kind is kind)

    def per(self, pairs: float) -> PerPair:
        """Returns the instructions per pair of logits, of which one lane consumes `pairs` in one pass of the loop."""
        if not pairs > 0:
            raise ValueError(f"pairs must be the positive number of logit pairs a lane consumes a pass, got {pairs}")
        return PerPair(len(self.instructions) / pairs, {kind: count / pairs for kind, count in self.counts.items()})


def loops(function: Function) -> list[Loop]:
    """Returns all loops, outer ones before those inside them, otherwise by address, those of device functions
    included."""
    successors, _ = _graph(function)
    return _nested(function, set(range(len(function.instructions))), successors, depth=0)


def converged(function: Function) -> list[Instruction]:
    """Returns the instructions that a converged warp can reach, those of device functions included."""
    _, reached = _graph(function)
    return [instruction for i, instruction in enumerate(function.instructions) if i in reached]


def _nested(function: Function, nodes: set[int], successors: Sequence[Sequence[int]], depth: int) -> list[Loop]:
    """Finds the loops among `nodes`: each strongly connected part, and inside it more, once the edges to its entries
    are cut."""
    found: list[Loop] = []
    for part in _strongly_connected(nodes, successors):
        ordered = sorted(part)
        if len(part) == 1 and ordered[0] not in successors[ordered[0]]:
            continue
        outside = {target for node in range(len(successors)) if node not in part for target in successors[node]}
        entries = (part & outside) or {ordered[0]}  # no entry: the function starts with the loop
        cut = [() if n not in part else tuple(t for t in ts if t not in entries) for n, ts in enumerate(successors)]
        inside = _nested(function, part, cut, depth + 1)
        loop = Loop([function.instructions[node] for node in ordered], depth)
        loop.inner = [candidate for candidate in inside if candidate.depth == depth + 1]
        found += [loop, *inside]
    return sorted(found, key=lambda loop: (loop.start, loop.depth))


def _graph(function: Function) -> tuple[list[tuple[int, ...]], set[int]]:
    """Returns, for each instruction, the indices of those that can follow it; and the indices of the reachable ones.
    Unreachable instructions have no successors."""
    index = {instruction.address: i for i, instruction in enumerate(function.instructions)}
    successors: list[tuple[int, ...]] = []
    roots = [0]
    for i, instruction in enumerate(function.instructions):
        targets = [index[function.labels[label]] for label in instruction.labels() if label in function.labels]
        after = [i + 1] if i + 1 < len(function.instructions) else []
        following = after
        if instruction.base in _ENDS:
            following = [] if instruction.predicate in _ALWAYS else after
        elif instruction.base in _JUMPS:
            if ".DIV" in instruction.opcode:
                following = after
            elif ".CONV" in instruction.opcode or not _conditional(instruction):
                following = targets
            else:
                following = [*after, *targets]
        elif instruction.base == "CALL":
            roots += targets
        successors.append(tuple(following))
    reached = _reachable(roots if function.instructions else [], successors)
    return [following if i in reached else () for i, following in enumerate(successors)], reached


def _conditional(jump: Instruction) -> bool:
    """Tells whether a branch is conditional, by its predicate or by one among its operands: `@P0 BRA P1, ...` needs
    both, `BRA.U UP0, ...`."""
    first = jump.operands.partition(",")[0].lstrip("!")
    operand = first if "," in jump.operands and first.lstrip("U").startswith("P") else ""
    return jump.predicate not in _ALWAYS or operand not in _ALWAYS


def _reachable(roots: Iterable[int], successors: Sequence[Sequence[int]]) -> set[int]:
    reached: set[int] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += successors[node]
    return reached


def _strongly_connected(nodes: set[int], successors: Sequence[Sequence[int]]) -> list[set[int]]:
    """Runs Tarjan's algorithm with a stack of its own, because functions are thousands of instructions long."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    parts: list[set[int]] = []
    for root in sorted(nodes):
        if root in number:
            continue
        work = [(root, iter(successors[root]))]
        number[root] = low[root] = len(number)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, following = work[-1]
            target = next(following, None)
            if target is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == number[node]:
                    cut = stack.index(node)
                    parts.append(set(stack[cut:]))
                    on_stack -= parts[-1]
                    del stack[cut:]
            elif target not in nodes:
                continue
            elif target not in number:
                number[target] = low[target] = len(number)
                stack.append(target)
                on_stack.add(target)
                work.append((target, iter(successors[target])))
            elif target in on_stack:
                low[node] = min(low[node], number[target])
    return parts
