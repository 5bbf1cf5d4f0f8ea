"""Times trbext.solve, sample and blend beside code that a user could write: `python -m benchmarks.operators.blend`.

Prints one table and the bars that the kernels must meet; writes blend.csv and blend.png. Every method is checked
against `trbext.reference` before it is timed. The default grid is meant for a quarter of an hour on two idle cores, and
needs 4 GB.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

import trbext
from trbext.results import Blend, Sample

from ..harness.bars import print_bars
from ..harness.correctness import Truth, WrongAnswer
from ..harness.machine import this_machine, wide_console
from ..harness.records import write_csv
from ..harness.rows import language_model_rows
from ..harness.timing import Method, time_interleaved
from . import cpu_report, peers
from .cpu_results import BAR_ROWS, BAR_THREADS, BAR_VOCAB, FLOORS, OPERATORS, Case, Record, bars
from .decoding import Decoding, real_rows, time_decoding

LOOSE = 1e3  # nats, above any teacher's KL here: beta = 1
BRENTQ_ROWS = 2
GRID = {"vocab": [32_768, 49_152, 151_936, 262_144], "rows": [1, 8, 64, 256], "repetitions": 30, "seconds": 12.0}
QUICK = {"vocab": [2048], "rows": [1, 4], "repetitions": 5, "seconds": 0.5}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def methods(student: Tensor, teacher: Tensor, truths: dict[str, tuple[float, Truth]], compiled: bool) -> list[Method]:
    """Makes everything to time on one pair of inputs.

    Args:
        student: [N, V] logits.
        teacher: [N, V] logits.
        truths: Per budget, epsilon and the right answers.
        compiled: Whether torch.compile is timed too.
    """
    rows, vocab = student.shape
    out = torch.empty(rows, vocab)
    uniform = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # 1. The read, the fills and two log_softmax bound the time from below.
    found = [
        Method("read", peers.read(student, teacher)),
        Method("fill", lambda: out.fill_(0.0)),
        Method("new fill", lambda: torch.full((rows, vocab), 1.0)),
        Method("2 log_softmax", lambda: peers.two_log_softmax(student, teacher)),
    ]
    # 2. The operators run at both budgets, and so does Newton that stops once all rows have converged.
    for budget, (epsilon, truth) in truths.items():
        found += operators(student, teacher, epsilon, uniform, truth, budget)
    moments = peers.Moments(rows, vocab)
    newton, stopping = (peers.eager_newton(moments, stop=stop) for stop in (False, True))
    for budget, (epsilon, truth) in truths.items():
        found.append(solver("Newton stop", stopping, student, teacher, epsilon, truth, budget))
    # 3. The others run at the binding budget only. Their time does not depend on it, and brentq has nothing to search
    # for if it does not bind.
    epsilon, truth = truths["binding"]
    found.append(solver("Newton 10", newton, student, teacher, epsilon, truth))
    for steps in (16, 50):
        bisection = peers.eager_bisection(moments, steps)
        found.append(
            solver(f"bisection {steps}", bisection, student, teacher, epsilon, truth, resolution=2.0 ** (1 - steps))
        )
    few = slice(BRENTQ_ROWS)
    found.append(solver("brentq", peers.brentq, student[few], teacher[few], epsilon, truth, "binding"))
    found[-1].scale = rows / min(rows, BRENTQ_ROWS)
    if compiled:
        found.append(solver("Newton compiled", peers.compiled_newton(), student, teacher, epsilon, truth))
        try:
            found[-1].call()
        except Exception as error:  # no compiler, no headers, an unknown one: each error names what is missing
            found[-1].note = f"left out, torch.compile failed: {str(error).strip().splitlines()[0]}"
    return found


def operators(
    student: Tensor, teacher: Tensor, epsilon: float, uniform: Tensor, truth: Truth, budget: str
) -> list[Method]:
    """Makes the methods that call solve, sample and blend.

    Args:
        student: [N, V] logits.
        teacher: [N, V] logits.
        epsilon: KL budget, nats.
        uniform: [N] float64 in [0, 1).
        truth: The right answers.
        budget: "binding" or "not binding".
    """

    def right_sample(drawn: Sample) -> None:
        truth.check("trbext.sample", drawn.beta, drawn.kl)
        truth.check_tokens("trbext.sample", drawn.token, drawn.log_prob)

    def right_blend(blended: Blend) -> None:
        truth.check("trbext.blend", blended.beta, blended.kl)
        truth.check_log_probs("trbext.blend", blended.log_probs)

    return [
        Method(
            "solve",
            lambda: trbext.solve(student, teacher, epsilon),
            lambda solved: truth.check("trbext.solve", solved.beta, solved.kl),
            budget,
        ),
        Method("sample", lambda: trbext.sample(student, teacher, epsilon, uniform=uniform), right_sample, budget),
        Method("blend", lambda: trbext.blend(student, teacher, epsilon), right_blend, budget),
    ]


def solver(
    name: str,
    solve: peers.Solver,
    student: Tensor,
    teacher: Tensor,
    epsilon: float,
    truth: Truth,
    budget: str = "any",
    resolution: float = 0.0,
) -> Method:
    """Makes the method that calls one peer of solve.

    Args:
        name: The method's.
        solve: The peer.
        student: [N, V] logits.
        teacher: [N, V] logits.
        epsilon: KL budget, nats.
        truth: The right answers.
        budget: "binding", "not binding", or "any" if the time does not depend on it.
        resolution: The error of beta that the peer may have.
    """
    return Method(
        name,
        lambda: solve(student, teacher, epsilon),
        lambda found: truth.check(name, found[0], found[1], resolution),
        budget,
    )


def pairs(options: argparse.Namespace) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Yields (inputs, dtype, student, teacher) with the most rows of any case. A case uses the first N of them."""
    for vocab in options.vocab:
        student, teacher = language_model_rows(max(options.rows), vocab)
        for dtype in options.dtype:
            yield "synthetic", dtype, student.to(DTYPES[dtype]), teacher.to(DTYPES[dtype])
    if options.real_models:
        student, teacher = real_rows(options.real_models, epsilon=options.epsilon)
        for dtype in options.dtype:
            yield "SmolLM2", dtype, student.to(DTYPES[dtype]), teacher.to(DTYPES[dtype])


def run(options: argparse.Namespace, console: Console) -> tuple[list[Record], Decoding | None]:
    """Times every case of the grid.

    Args:
        options: Of the command line.
        console: Where to show progress.

    Returns:
        The records, and the times of a decoding step if there are real models.
    """
    records: list[Record] = []
    for inputs, dtype, student, teacher in pairs(options):
        vocab = student.shape[1]
        budgets = {"binding": options.epsilon, "not binding": LOOSE}
        truths = {budget: (epsilon, Truth.find(student, teacher, epsilon)) for budget, epsilon in budgets.items()}
        if inputs == "synthetic" and bool((truths["binding"][1].beta == 1).any()):
            raise SystemExit(f"--epsilon {options.epsilon} does not bind on every synthetic row: choose a smaller one")
        for rows in options.rows:
            case = Case(inputs, vocab, rows, dtype)
            if rows > len(student):
                console.print(f"{case}: left out, there are {len(student)} rows")
                continue
            console.print(f"[dim]{inputs}, V {vocab}, N {rows}, {dtype}", highlight=False)
            at_bar = inputs == "synthetic" and (vocab, rows) == (BAR_VOCAB, BAR_ROWS)
            compiled = options.compile == "all" or (options.compile == "bars" and at_bar)
            timed = methods(student[:rows], teacher[:rows], truths, compiled)
            before = timed[0].call  # the read
            time_interleaved(timed, before, repetitions=options.repetitions, seconds=options.seconds_per_cell)
            sweeps = {
                budget: trbext.solve(student[:rows], teacher[:rows], epsilon).sweeps
                for budget, epsilon in budgets.items()
            }
            records += [record(case, method, student.element_size(), budgets, sweeps) for method in timed]
            torch._dynamo.reset()  # a compiled function keeps its inputs' shapes and a cache
            gc.collect()
    decoding = time_decoding(options.real_models, epsilon=options.epsilon) if options.real_models else None
    return records, decoding


def record(case: Case, method: Method, element: int, budgets: dict[str, float], sweeps: dict[str, Tensor]) -> Record:
    """Makes the record of a method.

    Args:
        case: What was timed.
        method: The timed method.
        element: Bytes of a logit.
        budgets: epsilon in nats, by the name of the budget.
        sweeps: [N] int32, by the name of the budget.
    """
    seconds = method.median
    size = case.rows * case.vocab * (2 * element if method.name == "read" else 4)
    counted = sweeps[method.budget] if method.name in OPERATORS else None
    return Record(
        **asdict(case),
        budget=method.budget,
        epsilon=budgets.get(method.budget),
        method=method.name,
        median_s=seconds,
        fastest_s=method.fastest,
        repetitions=len(method.seconds),
        us_per_row=seconds * 1e6 / case.rows if seconds else None,
        gb_per_s=size / seconds / 1e9 if seconds and method.name in FLOORS else None,
        sweeps_mean=counted.float().mean().item() if counted is not None else None,
        sweeps_max=int(counted.max()) if counted is not None else None,
        note=method.note,
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the words after `python -m benchmarks.operators.blend`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operators.blend", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("--quick", action="store_true", help="a tiny grid that shows that everything runs")
    parser.add_argument("--vocab", type=int, nargs="+", metavar="V", help=f"default {GRID['vocab']}")
    parser.add_argument("--rows", type=int, nargs="+", metavar="N", help=f"default {GRID['rows']}")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--epsilon", type=float, default=0.02, help="the binding budget in nats, default 0.02")
    parser.add_argument("--repetitions", type=int, metavar="K", help=f"default {GRID['repetitions']}")
    parser.add_argument(
        "--seconds-per-cell",
        type=float,
        metavar="S",
        help=f"time that the methods share; slow ones get fewer repetitions, at least 3 (default {GRID['seconds']})",
    )
    parser.add_argument(
        "--compile",
        choices=("bars", "all", "none"),
        default=None,
        help="the cases in which torch.compile is timed: by default V = 151936, N = 64, as compiling takes long",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"), metavar="DIR")
    parser.add_argument("--real-models", type=Path, metavar="DIR", help="folder that recipes/smollm2_pruned.py writes")
    options = parser.parse_args(arguments)
    grid = QUICK if options.quick else GRID
    options.vocab, options.rows = options.vocab or grid["vocab"], options.rows or grid["rows"]
    options.repetitions = options.repetitions or grid["repetitions"]
    options.seconds_per_cell = options.seconds_per_cell or grid["seconds"]
    options.compile = options.compile or ("none" if options.quick else "bars")
    if min(options.vocab) < 2 or min(options.rows) < 1 or options.repetitions < 3:
        parser.error("--vocab must be at least 2, --rows at least 1 and --repetitions at least 3")
    if not options.epsilon > 0:
        parser.error(f"--epsilon must be positive, got {options.epsilon}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Times, prints and writes everything; returns the exit code."""
    options = parse(arguments)
    console = wide_console(cpu_report.WIDTH)
    machine = this_machine()
    if machine.load > 0.5:
        console.print(
            f"The machine is busy (load {machine.load:.1f}): expect noise, most if several threads wait for one."
        )
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        records, decoding = run(options, console)
    except (WrongAnswer, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    cpu_report.print_table(records, machine, console)
    if decoding:
        console.print(
            f"A lockstep decoding step of the SmolLM2 pair, batch {decoding.batch}, V {decoding.vocab}, "
            f"{decoding.dtype}: {decoding.step * 1e3:.1f} ms, of which trbext.sample {decoding.operator * 1e3:.2f} ms "
            f"({decoding.share:.2%}); medians of {decoding.steps} steps"
        )
    write_csv(records, options.output / "blend.csv", machine=machine)
    cpu_report.write_plot(records, machine, options.output / "blend.png")
    console.print(f"wrote {options.output / 'blend.csv'} and {options.output / 'blend.png'}")
    title = f"Bars, at V = {BAR_VOCAB} and {BAR_THREADS} threads (this run: {machine.threads}):"
    print_bars(bars(records, decoding), title, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
