"""Counts what a block executes for a row outside its loops: `python -m benchmarks.models.row_instructions`.

The interpreter (ptxsim) counts how often warps execute each line of the shipped PTX, and ptxas says from which line it
makes each machine instruction. Together they count machine instructions that no GPU has executed.

Two runs that differ in one row, less two runs that differ in the chunks of a row, are what one row costs whatever its
length. The barriers of the block divide a row into phases. Warp 0 also decides, while the other warps wait: its
instructions of the two decisions take issue slots, and their time is in `benchmarks.models.decision_trace`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ptxsim import Result
from ptxsim.text.syntax import Instruction
from python_tests import sass
from python_tests.cuda.ptx_rows import NAMES, PtxOperators, row_text
from python_tests.sass import Kind

from ..harness.machine import wide_console
from ..harness.table import print_table

BLOCKS, WARPS, LANES = 6, 8, 32
ARCHITECTURES = (90, 100)  # 120 has the loops of 90
EPSILONS = {"direct": 0.02, "stable": 0.005}  # bind, by one sweep of that form
FEW, MANY = 4, 8  # chunks of a warp
PHASES = ("load", "first sweep", "first decision", "exact sweep", "second decision", "end")
TITLE = "COUNT of machine instructions that a block executes for a row, outside the loops over its logits"


@dataclass(frozen=True)
class Phase:
    """Instructions of one block between two of its barriers, of any warp."""

    name: str
    per_row: float  # outside the loops
    per_pair: float  # in the loop over the logits, per pair and lane
    per_row_by_kind: dict[Kind, float]


def phases(dtype: torch.dtype = torch.bfloat16, form: str = "direct", arch: int = 90) -> list[Phase]:
    """Counts the instructions of each phase of a row [V] that is solved by two sweeps.

    Args:
        dtype: Of the logits.
        form: Of the second sweep: "direct" or "stable".
        arch: Of the machine code: 90 is sm_90.
    """
    code = sass.placed_instructions(row_text(arch, dtype, "resident"), f"sm_{arch}")
    short, two, long = (_solved(dtype, form, arch, rows, chunks) for rows, chunks in ((1, FEW), (2, FEW), (1, MANY)))
    of_short, of_two, of_long = (sass.executed(code, run.lines) for run in (short, two, long))
    phase_of_line = _phase_of_line(short.trace)
    pairs = WARPS * 512 // dtype.itemsize // LANES  # of all lanes 0 of a block, in one chunk of each warp
    per_row, per_pair, by_kind = Counter[str](), Counter[str](), dict[str, Counter[Kind]]()
    for placed in code:
        at = placed.instruction.address
        of_chunk = (of_long[at] - of_short[at]) / (MANY - FEW) / BLOCKS
        of_row = (of_two[at] - of_short[at]) / BLOCKS - FEW * of_chunk
        phase = phase_of_line.get(placed.line, PHASES[0])  # the prefetch of the second row is in no trace of one
        per_row[phase] += of_row
        per_pair[phase] += of_chunk / pairs
        by_kind.setdefault(phase, Counter())[placed.instruction.kind] += of_row
    return [Phase(name, per_row[name], per_pair[name], dict(by_kind.get(name, {}))) for name in PHASES]


def per_row(found: Sequence[Phase]) -> float:
    """Returns the instructions of a row outside its loops, as `Counts.row_instructions` has them."""
    return sum(phase.per_row for phase in found)


def _solved(dtype: torch.dtype, form: str, arch: int, rows: int, chunks: int) -> Result:
    """Solves `rows` rows of `chunks` chunks per warp in one cluster."""
    vocab = BLOCKS * WARPS * chunks * 512 // dtype.itemsize
    generator = torch.Generator().manual_seed(0)
    student = (2 * torch.randn(1, vocab, generator=generator)).to(dtype)
    teacher = (student.float() + torch.randn(1, vocab, generator=generator)).to(dtype)
    trb = PtxOperators(arch, ranks=BLOCKS, clusters=1, traced=True)
    solved = trb.solve(student.repeat(rows, 1), teacher.repeat(rows, 1), EPSILONS[form])
    if solved.sweeps.tolist() != [2] * rows:
        raise RuntimeError(f"each row must take two sweeps, got {solved.sweeps.tolist()}")
    return trb.results[-1]


def _phase_of_line(trace: Sequence[Instruction]) -> dict[int, str]:
    """Returns line -> phase, from the statements of warp 0 for one row."""
    found: dict[int, str] = {}
    passed, loads = 0, False
    for statement in trace:
        found.setdefault(statement.line, PHASES[min(passed, len(PHASES) - 1)])
        loads |= statement.opcode == "ld" and {"global", "v4"} <= set(statement.modifiers)
        barrier = statement.opcode in ("bar", "barrier") and not {"warp", "cluster"} & set(statement.modifiers)
        passed += barrier and loads
    return found


def main(arguments: list[str] | None = None) -> int:
    """Prints the phases of a row; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models.row_instructions", description=(__doc__ or "").split("\n\n")[1]
    )
    names = {name: dtype for dtype, name in NAMES.items()}
    parser.add_argument("--dtype", choices=names, default="bfloat16", help="of the logits")
    parser.add_argument("--form", choices=EPSILONS, default="direct", help="of the second sweep")
    parser.add_argument("--arch", type=int, choices=ARCHITECTURES, default=90, help="90: sm_90 (default: %(default)s)")
    options = parser.parse_args(arguments)
    if (missing := sass.missing_tool()) is not None:
        print(f"benchmarks.models.row_instructions: {missing}", file=sys.stderr)
        return 2
    found = phases(names[options.dtype], options.form, options.arch)
    console = wide_console(150)
    rows = [[p.name, f"{p.per_row:,.0f}", f"{p.per_pair:.2f}", _kinds(p)] for p in found]
    rows.append(["sum", f"{per_row(found):,.0f}", f"{sum(p.per_pair for p in found):.2f}", ""])
    headings = ("phase", "per row and block", "per pair", "per row, by class")
    title = f"{TITLE}, sm_{options.arch}, {options.dtype}, {options.form}"
    print_table(console, title, headings, rows, left=("phase", "per row, by class"))
    return 0


def _kinds(phase: Phase) -> str:
    largest = sorted(phase.per_row_by_kind.items(), key=lambda item: -item[1])[:6]
    return ", ".join(f"{count:.0f} {kind.value}" for kind, count in largest if count >= 1)


if __name__ == "__main__":
    sys.exit(main())
