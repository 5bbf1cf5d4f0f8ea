"""Times solve, sample and blend on a GPU beside what a user would write: `python -m benchmarks.operators.blend_cuda`.

Prints one table, the rate of a device copy beside each rate, and the bars the kernels are held to; writes
blend_cuda.csv and blend_cuda.png. Every method is checked against `trbext.reference` before it is timed. Exit code 2
where there is no CUDA device or no kernel in this build.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

import trbext

from ..harness.correctness import REFERENCE_ROWS, Truth
from ..harness.report import WIDTH
from ..harness.results import write_csv
from ..harness.rows import language_model_rows
from ..harness.timing import Method
from . import cuda_report, peers
from .cuda_results import BAR_DTYPE, BAR_ROWS, BAR_VOCAB, OPERATORS, CudaMachine, CudaRecord, bars, model_bytes
from .cuda_timing import Clock, CudaClock, copy_rate, time_rounds

DISTINCT = 64  # rows; larger batches repeat them
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# --quick: what the bars are of, under a minute.
QUICK = {"vocab": [BAR_VOCAB], "rows": [1, 64, 256, 4096], "dtype": [BAR_DTYPE], "cache": ["cold"],
         "seconds_per_cell": 0.5, "compile": "none"}  # fmt: skip
VOCABS, ROWS = [32_768, 49_152, 151_936, 262_144], [1, 4, 16, 64, 256, 1024, 4096]
BISECTION_ERROR = 2.0**-15  # of 16 evaluations, the first one at beta = 1


@dataclass(frozen=True)
class Candidate:
    """Something that solves the case, before it is known how it is launched and from which caches."""

    name: str
    call: Callable[[], Any]
    check: Callable[[Any], None] | None = None
    note: str = ""


@dataclass(frozen=True)
class Batch:
    """Rows that repeat the first `DISTINCT` ones, and the answers for those."""

    student: Tensor
    teacher: Tensor
    uniform: Tensor
    epsilon: float
    truth: Truth

    def right(self, name: str, beta: Tensor, kl: Tensor, resolution: float = 0.0) -> None:
        """WrongAnswer unless beta [N] and kl [N] are right in every row."""
        for got_beta, got_kl in zip(beta.cpu().split(DISTINCT), kl.cpu().split(DISTINCT), strict=True):
            self.truth.check(name, got_beta, got_kl, resolution)


def operators(batch: Batch) -> list[Candidate]:
    student, teacher, epsilon = batch.student, batch.teacher, batch.epsilon

    def right_sample(drawn: Any) -> None:
        batch.right("trbext.sample", drawn.beta, drawn.kl)
        first = (drawn.token[:REFERENCE_ROWS].cpu(), drawn.log_prob[:REFERENCE_ROWS].cpu())
        batch.truth.check_tokens("trbext.sample", *first)

    def right_blend(blended: Any) -> None:
        batch.right("trbext.blend", blended.beta, blended.kl)
        batch.truth.check_log_probs("trbext.blend", blended.log_probs[:REFERENCE_ROWS].cpu())

    return [
        Candidate(
            "solve",
            lambda: trbext.solve(student, teacher, epsilon),
            lambda solved: batch.right("trbext.solve", solved.beta, solved.kl),
        ),
        Candidate("sample", lambda: trbext.sample(student, teacher, epsilon, uniform=batch.uniform), right_sample),
        Candidate("blend", lambda: trbext.blend(student, teacher, epsilon), right_blend),
    ]


def competitors(batch: Batch, clock: Clock, compiled: bool) -> list[Candidate]:
    student, teacher = batch.student, batch.teacher

    def solver(name: str, solve: peers.Solver, resolution: float = 0.0) -> Candidate:
        return Candidate(
            name,
            lambda: solve(student, teacher, batch.epsilon),
            lambda found: batch.right(name, found[0], found[1], resolution),
        )

    found = [Candidate("2 log_softmax", lambda: peers.two_log_softmax(student, teacher))]
    try:
        room = torch.empty(2 * student.numel(), device=student.device)  # that the others' outputs will need
        moments = peers.Moments(*student.shape, device=str(student.device))
        del room
        choose_sums(moments, batch, clock)
        found.append(solver("Newton 10", peers.eager_newton(moments)))
        found.append(solver("bisection 16", peers.eager_bisection(moments, 16), BISECTION_ERROR))
    except torch.OutOfMemoryError:
        note = "left out: not enough GPU memory"
        found += [Candidate(name, lambda: None, note=note) for name in ("Newton 10", "bisection 16")]
    if compiled:
        candidate = solver("Newton compiled", peers.compiled_newton())
        try:
            candidate.call()
        except Exception as error:  # no compiler, no headers, no memory: all of them name what is missing
            note = f"left out, torch.compile failed: {str(error).strip().splitlines()[0]}"
            candidate = Candidate("Newton compiled", candidate.call, note=note)
        found.append(candidate)
    return found


def choose_sums(moments: peers.Moments, batch: Batch, clock: Clock) -> None:
    """One batched product, or sums one by one: whichever is faster for this shape on this GPU."""
    moments.load(batch.student, batch.teacher, 3)
    beta = torch.ones(len(batch.student), device=batch.student.device)
    lasted = {}
    for products in (True, False):
        moments.products = products
        moments.at(beta)
        lasted[products] = clock.seconds(clock.cool, lambda: moments.at(beta))
    moments.products = lasted[True] <= lasted[False]


def batches(vocab: int, dtype: str, options: argparse.Namespace, device: str) -> Iterator[tuple[int, Batch | None]]:
    """(N, batch) for each N; no batch where it does not fit."""
    distinct = min(DISTINCT, max(options.rows))
    student, teacher = (logits.to(DTYPES[dtype]) for logits in language_model_rows(distinct, vocab))
    truth = Truth.find(student, teacher, options.epsilon)
    if bool((truth.beta == 1).any()):
        raise SystemExit(f"--epsilon {options.epsilon} does not bind on every row: choose a smaller one")
    student, teacher = student.to(device), teacher.to(device)
    for rows in options.rows:
        generator = torch.Generator().manual_seed(0)
        uniform = torch.rand(rows, dtype=torch.float64, generator=generator).to(device)
        try:
            repeated = torch.arange(rows, device=device) % distinct
            yield rows, Batch(student[repeated], teacher[repeated], uniform, options.epsilon, truth)
        except torch.OutOfMemoryError:
            yield rows, None


def run(
    options: argparse.Namespace, clock: Clock, copy_gb_per_s: float, console: Console, device: str = "cuda"
) -> list[CudaRecord]:
    """Every case of the grid, with a progress bar of them."""
    records: list[CudaRecord] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=len(options.vocab) * len(options.dtype) * len(options.rows))
        for vocab in options.vocab:
            for dtype in options.dtype:
                for rows, batch in batches(vocab, dtype, options, device):
                    progress.update(task, description=f"V {vocab}, N {rows}, {dtype}")
                    if batch is None:
                        console.print(f"V {vocab}, N {rows}, {dtype}: left out, the logits need too much GPU memory")
                    else:
                        records += time_case(batch, dtype, options, clock, copy_gb_per_s)
                    del batch  # before the next one is made
                    progress.advance(task)
    return records


def time_case(
    batch: Batch, dtype: str, options: argparse.Namespace, clock: Clock, copy_gb_per_s: float
) -> list[CudaRecord]:
    rows, vocab = batch.student.shape
    at_bar = (vocab, dtype) == (BAR_VOCAB, BAR_DTYPE) and rows >= BAR_ROWS
    compiled = options.compile == "all" or (options.compile == "bars" and at_bar)
    candidates = operators(batch) + competitors(batch, clock, compiled)
    launches: dict[str, Sequence[Candidate]] = {"call": candidates}
    if rows <= options.graph_rows:
        launches["graph"] = [
            Candidate(c.name, clock.capture(c.call), c.check)
            for c in candidates
            if not c.note and c.name != "Newton compiled"
        ]
    counted = trbext.solve(batch.student[:DISTINCT], batch.teacher[:DISTINCT], batch.epsilon).sweeps
    records = []
    for launch, launched in launches.items():
        for cache in options.cache:
            methods = [Method(c.name, c.call, c.check, note=c.note) for c in launched]
            time_rounds(methods, clock, cache, repetitions=options.repetitions, seconds=options.seconds_per_cell)
            for method in methods:
                moved = model_bytes(method.name, rows, vocab, dtype)
                rate = moved / method.median / 1e9 if method.median else None
                operator = method.name in OPERATORS
                records.append(
                    CudaRecord(
                        vocab=vocab,
                        rows=rows,
                        dtype=dtype,
                        cache=cache,
                        launch=launch,
                        method=method.name,
                        epsilon=batch.epsilon,
                        median_s=method.median,
                        fastest_s=method.fastest,
                        repetitions=len(method.seconds),
                        model_bytes=moved,
                        gb_per_s=rate,
                        copy_percent=100 * rate / copy_gb_per_s if rate else None,
                        sweeps_mean=counted.float().mean().item() if operator else None,
                        sweeps_max=int(counted.max()) if operator else None,
                        note=method.note,
                    )
                )
    torch._dynamo.reset()  # a compiled function holds on to its inputs' shapes and a cache of its own
    gc.collect()
    return records


def missing() -> str | None:
    """Why nothing can be timed here, None where it can."""
    if not torch.cuda.is_available():
        return "there is no CUDA device (torch.cuda.is_available() is false)"
    if not trbext._C.cuda_compiled:
        return "this build of trbext has no CUDA kernels; build it where nvcc >= 12.4 is (TRB_CUDA=ON pip install .)"
    return None


def this_gpu(copy_gb_per_s: float) -> CudaMachine:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return CudaMachine(
        gpu=properties.name,
        capability=f"{properties.major}{properties.minor}",
        multiprocessors=properties.multi_processor_count,
        l2_mb=properties.L2_cache_size / 1e6,
        memory_gb=properties.total_memory / 1e9,
        copy_gb_per_s=copy_gb_per_s,
        torch=torch.__version__,
        cuda=torch.version.cuda or "none",
        trbext=trbext.__version__,
        architectures=trbext._C.cuda_archs,
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operators.blend_cuda",
        description=(__doc__ or "").split("\n\n")[1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--vocab", type=int, nargs="+", default=VOCABS, metavar="V", help="tokens a row")
    add("--rows", type=int, nargs="+", default=ROWS, metavar="N", help="rows a call")
    add("--dtype", nargs="+", choices=DTYPES, default=["float32", "bfloat16"], help="of both logits")
    add("--epsilon", type=float, default=0.02, metavar="NATS", help="KL budget; must bind on every row")
    add("--cache", nargs="+", choices=("cold", "warm"), default=["cold", "warm"], help="state of the L2 cache")
    add("--graph-rows", type=int, default=64, metavar="N", help="up to this N, CUDA graph replay is timed as well")
    add("--repetitions", type=int, default=50, metavar="K", help="calls timed of each method, where it is fast enough")
    add(
        "--seconds-per-cell",
        type=float,
        default=1.0,
        metavar="S",
        help="of one table line, shared by its methods; slow ones get fewer repetitions, at least 3",
    )
    add(
        "--compile",
        choices=("bars", "all", "none"),
        default="bars",
        help="where torch.compile is timed, as compiling takes long; "
        f"bars: V = {BAR_VOCAB}, N >= {BAR_ROWS}, {BAR_DTYPE}",
    )
    add("--output", type=Path, default=Path("runs/benchmarks"), metavar="DIR", help="for the CSV file and the plot")
    quick = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in QUICK.items())
    add("--quick", action="store_true", help=f"under a minute: {quick}".translate({ord(c): None for c in "[],'"}))
    first, _ = parser.parse_known_args(arguments)
    if first.quick:
        parser.set_defaults(**QUICK)  # which an option of one's own still overrides
    options = parser.parse_args(arguments)
    if min(options.vocab) < 2 or min(options.rows) < 1 or options.repetitions < 3:
        parser.error("--vocab must be at least 2, --rows at least 1 and --repetitions at least 3")
    if not options.epsilon > 0 or not options.seconds_per_cell > 0:
        parser.error(
            f"--epsilon and --seconds-per-cell must be positive, got {options.epsilon} and {options.seconds_per_cell}"
        )
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    reason = missing()
    if reason:
        print(f"benchmarks.operators.blend_cuda: nothing timed: {reason}", file=sys.stderr)
        return 2
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    clock = CudaClock(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)
    machine = this_gpu(copy_rate(clock, megabytes=1024, device="cuda"))
    console.print(f"{machine}", highlight=False)
    write(run(options, clock, machine.copy_gb_per_s, console), machine, options.output, console)
    return 0


def write(records: Sequence[CudaRecord], machine: CudaMachine, output: Path, console: Console) -> None:
    """The table, the files and the bars."""
    output.mkdir(parents=True, exist_ok=True)
    cuda_report.print_table(records, machine, console)
    write_csv(records, machine, output / "blend_cuda.csv")
    cuda_report.plot(records, machine, output / "blend_cuda.png")
    console.print(f"wrote {output / 'blend_cuda.csv'} and {output / 'blend_cuda.png'}")
    console.print(f"Bars, at V = {BAR_VOCAB}, from cold caches:")
    for bar in bars(records, machine.copy_gb_per_s):
        console.print(f"  {bar}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
