"""Estimates how long the kernels' decisions take: `python -m benchmarks.models.decision_trace`.

A decision is what warp 0 of a block executes between the last pair of logits of a sweep and the first one of the next,
or the answer: the sums over lanes, warps and blocks, the exchange between the blocks, and the search. The warp's
statements come from running the shipped PTX on the interpreter (ptxsim), and their cycles from a scoreboard with a
table of latencies, which are assumptions unless --chip names a file of the chip probe.

The same scoreboard estimates what else warp 0 executes outside the loops of a row: from an answer to the first load of
the next row, and from the last load to the first pair of the first sweep.

Not in these figures: misses of the instruction cache, and waiting for slower warps and blocks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch

from ptxsim.text.syntax import Instruction
from python_tests.cuda.ptx_rows import PtxOperators

from ..harness.machine import wide_console
from ..harness.table import print_table
from .latency_tables import CENTRAL, TABLES, Latencies, of_chip
from .scoreboard import DIVISIONS, cycles, reordered

BLOCKS, VOCAB = 6, 24_576  # one chunk per strip: the fewest statements in the loops
EPSILON = 0.02  # binds on the row, by a direct sweep


@dataclass(frozen=True)
class Decision:
    """One decision of a row."""

    trace: Sequence[Instruction]

    def cycles(self, table: Latencies) -> float:
        """Returns the estimated cycles."""
        return cycles(reordered(self.trace, table), table)

    @property
    def statements(self) -> int:
        """The statements that the warp executes, moves left out."""
        return sum(instruction.opcode not in ("mov", "cvta") for instruction in self.trace)

    @property
    def doubles(self) -> int:
        """The statements in double precision, divisions among them."""
        return sum("f64" in i.modifiers and i.opcode not in ("mov", "ld", "st") for i in self.trace)

    @property
    def double_divisions(self) -> int:
        """The divisions, reciprocals and roots in double precision that are not approximations."""
        return sum("f64" in i.modifiers and i.opcode in DIVISIONS and "approx" not in i.modifiers for i in self.trace)

    @property
    def branches(self) -> int:
        """The branches, taken or not."""
        return sum(instruction.opcode == "bra" for instruction in self.trace)


def decisions_of(trace: Sequence[Instruction]) -> list[Decision]:
    """Cuts a row's statements into its decisions.

    Args:
        trace: The statements of warp 0 for one row, whose sweeps load 16 bytes of shared memory at a time.

    Raises:
        ValueError: The trace has no sweep, or stores no answer.
    """
    calls = accumulate((statement.opcode == "call") - (statement.opcode == "ret") for statement in trace)
    loads = [
        at
        for at, (statement, depth) in enumerate(zip(trace, calls, strict=True))
        if depth == 0 and _loads_pairs(statement)
    ]
    answers = [at for at, statement in enumerate(trace) if _stores_answer(statement) and loads[:1] < [at]]
    if not loads or not answers:
        raise ValueError(f"a trace must have sweeps and an answer, got {len(loads)} loads and {len(answers)} stores")
    found = []
    for last, following in zip(loads, [*loads[1:], next(at for at in answers if at > loads[-1])], strict=True):
        # The rest of the loop's body belongs to the pairs that were loaded last.
        begin = next(at for at in range(last, len(trace)) if trace[at].opcode == "bra") + 1
        decision = trace[begin:following]
        if any(i.opcode in ("barrier", "mbarrier") for i in decision):  # the blocks have met
            found.append(Decision(decision))
    return found


def surroundings_of(trace: Sequence[Instruction]) -> list[Decision]:
    """Cuts out what surrounds the loops of the second row: from the first answer to its load, and from there to its
    first sweep.

    Args:
        trace: The statements of warp 0 for two rows, whose loads from device memory have 16 bytes.

    Raises:
        ValueError: The trace has no second row.
    """
    answer = next((at for at, statement in enumerate(trace) if _stores_answer(statement)), len(trace))
    loads = [at for at in range(answer, len(trace)) if _loads_row(trace[at])]
    if not loads:
        raise ValueError("a trace must have two rows, got no load after an answer")
    begin = next(at for at in range(loads[-1], len(trace)) if trace[at].opcode == "bra") + 1
    sweep = next(at for at in range(begin, len(trace)) if _loads_pairs(trace[at]))
    return [Decision(trace[answer : loads[0]]), Decision(trace[begin:sweep])]


def _loads_row(statement: Instruction) -> bool:
    """Returns whether a statement loads 16 bytes of logits from device memory."""
    return statement.opcode == "ld" and {"global", "v4"} <= set(statement.modifiers)


def _loads_pairs(statement: Instruction) -> bool:
    """Returns whether a statement loads logits of the slice: its address is in a register, that of the state is not."""
    wide = statement.opcode == "ld" and {"shared", "v4", "u32"} <= set(statement.modifiers)
    return wide and statement.operands[-1].startswith("[%")


def _stores_answer(statement: Instruction) -> bool:
    """Returns whether a statement stores to device memory, perhaps by an address of any space."""
    elsewhere = ("shared", "shared::cluster", "local", "param")
    return statement.opcode == "st" and not set(elsewhere).intersection(statement.modifiers)


def traced_decisions(epsilon: float = EPSILON) -> list[Decision]:
    """Solves a random row [1, 24576] of bfloat16 logits on the interpreter, and returns its decisions.

    Args:
        epsilon: KL budget, nats.
    """
    return decisions_of(_trace(epsilon, rows=1))


def traced_surroundings(epsilon: float = EPSILON) -> list[Decision]:
    """Solves such a row twice, by the same blocks, and returns `surroundings_of` the second.

    Args:
        epsilon: KL budget, nats.
    """
    return surroundings_of(_trace(epsilon, rows=2))


def _trace(epsilon: float, rows: int) -> list[Instruction]:
    generator = torch.Generator().manual_seed(0)
    student = (2 * torch.randn(1, VOCAB, generator=generator)).bfloat16()
    teacher = (student.float() + torch.randn(1, VOCAB, generator=generator)).bfloat16()
    trb = PtxOperators(90, ranks=BLOCKS, clusters=1, traced=True)
    trb.solve(student.expand(rows, -1), teacher.expand(rows, -1), epsilon)
    return trb.results[-1].trace


def mean_cycles(decisions: Sequence[Decision], table: Latencies = CENTRAL) -> float:
    """Returns the cycles of a decision, averaged over those of a row, as `Counts.decision_cycles` has them."""
    return sum(decision.cycles(table) for decision in decisions) / len(decisions)


def print_decisions(tables: Mapping[str, Latencies], epsilons: Sequence[float]) -> None:
    """Prints the cycles of each decision by each table of latencies, and what the warp executes."""
    console = wide_console(150)
    for epsilon in epsilons:
        decisions = traced_decisions(epsilon)
        rows = []
        for name, table in tables.items():
            of_each = [decision.cycles(table) for decision in decisions]
            rows.append([name, *(f"{value:,.0f}" for value in of_each), f"{sum(of_each):,.0f}"])
        headings = ("latencies", *(f"decision {i + 1}" for i in range(len(decisions))), "sum")
        print_table(console, f"ESTIMATE, epsilon {epsilon:g}: cycles", headings, rows, left=("latencies",))
        counts = [[str(n) for n in (d.statements, d.doubles, d.double_divisions, d.branches)] for d in decisions]
        headings = ("decision", "statements", "double precision", "divisions of it", "branches")
        title = "what warp 0 executes, moves left out"
        print_table(console, title, headings, [[str(i + 1), *row] for i, row in enumerate(counts)])
    around = traced_surroundings()
    rows = [[name, *(f"{part.cycles(table):,.0f}" for part in around)] for name, table in tables.items()]
    headings = ("latencies", "from an answer to the next load", "from the last load to the first sweep")
    print_table(
        console, "ESTIMATE: cycles of the rest of a row, outside the loops", headings, rows, left=("latencies",)
    )


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models.decision_trace", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("--chip", type=Path, metavar="FILE", help="file of the chip probe, for one more table")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.1, EPSILON, 0.005], help="KL budgets, nats")
    options = parser.parse_args(arguments)
    try:
        tables = dict(TABLES) | ({options.chip.name: of_chip(options.chip)} if options.chip else {})
    except ValueError as error:
        print(f"benchmarks.models.decision_trace: {error}", file=sys.stderr)
        return 2
    print_decisions(tables, options.epsilons)
    return 0


if __name__ == "__main__":
    sys.exit(main())
