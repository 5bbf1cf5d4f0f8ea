"""Times solve, sample and blend on a GPU beside code of a user: `python -m benchmarks.operators.blend_cuda`.

Prints one table, the rate of a device copy beside each rate, and the bars that the kernels must meet; writes
blend_cuda.csv and blend_cuda.png. Every method is checked against `trbext.reference` before it is timed. Exit code 2
if there is no CUDA device or no kernel in this build.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import trbext

from ..harness.bars import print_bars
from ..harness.correctness import Truth
from ..harness.machine import wide_console
from ..harness.records import write_csv
from ..harness.rows import language_model_rows
from ..harness.timing import Method
from . import cuda_report
from .cuda_candidates import DISTINCT, Batch, Candidate, competitors, operators
from .cuda_results import BAR_DTYPE, BAR_ROWS, BAR_VOCAB, OPERATORS, CudaMachine, CudaRecord, bars, model_bytes
from .cuda_timing import Clock, CudaClock, copy_rate, time_rounds

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# --quick: the cases of the bars, in under a minute.
QUICK = {"vocab": [BAR_VOCAB], "rows": [1, 64, 256, 4096], "dtype": [BAR_DTYPE], "cache": ["cold"],
         "seconds_per_cell": 0.5, "compile": "none"}  # fmt: skip
VOCABS, ROWS = [32_768, 49_152, 151_936, 262_144], [1, 4, 16, 64, 256, 1024, 4096]


def batches(vocab: int, dtype: str, options: argparse.Namespace, device: str) -> Iterator[tuple[int, Batch | None]]:
    """Yields (N, batch) per N; None instead of a batch that does not fit.

    Args:
        vocab: Tokens per row.
        dtype: Of both logits.
        options: Of the command line.
        device: "cuda" or "cpu".
    """
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
    """Times every case of the grid, and shows a progress bar.

    Args:
        options: Of the command line.
        clock: Times the calls.
        copy_gb_per_s: The rate of a copy on the device.
        console: Where to show the bar.
        device: "cuda" or "cpu".

    Returns:
        The records.
    """
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
    """Times all methods on one batch, by every launch and from every state of the cache.

    Args:
        batch: The rows and their answers.
        dtype: Of both logits.
        options: Of the command line.
        clock: Times the calls.
        copy_gb_per_s: The rate of a copy on the device.

    Returns:
        The records.
    """
    # 1. Make the methods, by call and by replay of a CUDA graph.
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
    # 2. Time them from each state of the cache, and record them.
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
    torch._dynamo.reset()  # a compiled function keeps its inputs' shapes and a cache
    gc.collect()
    return records


def missing() -> str | None:
    """Returns why nothing can be timed here, None if it can."""
    if not torch.cuda.is_available():
        return "there is no CUDA device (torch.cuda.is_available() is false)"
    if not trbext._C.cuda_compiled:
        return "this build of trbext has no CUDA kernels; build it with nvcc >= 12.4 (TRB_CUDA=ON pip install .)"
    return None


def this_gpu(copy_gb_per_s: float) -> CudaMachine:
    """Returns the GPU, with the rate of a copy on it."""
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
    """Parses the words after `python -m benchmarks.operators.blend_cuda`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operators.blend_cuda",
        description=(__doc__ or "").split("\n\n")[1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--vocab", type=int, nargs="+", default=VOCABS, metavar="V", help="tokens per row")
    add("--rows", type=int, nargs="+", default=ROWS, metavar="N", help="rows per call")
    add("--dtype", nargs="+", choices=DTYPES, default=["float32", "bfloat16"], help="of both logits")
    add("--epsilon", type=float, default=0.02, metavar="NATS", help="KL budget; must bind on every row")
    add("--cache", nargs="+", choices=("cold", "warm"), default=["cold", "warm"], help="state of the L2 cache")
    add("--graph-rows", type=int, default=64, metavar="N", help="up to this N, CUDA graph replay is timed as well")
    add("--repetitions", type=int, default=50, metavar="K", help="timed calls of each method that is fast enough")
    add(
        "--seconds-per-cell",
        type=float,
        default=1.0,
        metavar="S",
        help="time of one table line, which its methods share; slow ones get fewer repetitions, at least 3",
    )
    add(
        "--compile",
        choices=("bars", "all", "none"),
        default="bars",
        help="the cases in which torch.compile is timed, as compiling takes long; "
        f"bars: V = {BAR_VOCAB}, N >= {BAR_ROWS}, {BAR_DTYPE}",
    )
    add("--output", type=Path, default=Path("runs/benchmarks"), metavar="DIR", help="folder of CSV file and plot")
    quick = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in QUICK.items())
    add("--quick", action="store_true", help=f"under a minute: {quick}".translate({ord(c): None for c in "[],'"}))
    first, _ = parser.parse_known_args(arguments)
    if first.quick:
        parser.set_defaults(**QUICK)  # a given option overrides these
    options = parser.parse_args(arguments)
    if min(options.vocab) < 2 or min(options.rows) < 1 or options.repetitions < 3:
        parser.error("--vocab must be at least 2, --rows at least 1 and --repetitions at least 3")
    if not options.epsilon > 0 or not options.seconds_per_cell > 0:
        parser.error(
            f"--epsilon and --seconds-per-cell must be positive, got {options.epsilon} and {options.seconds_per_cell}"
        )
    return options


def main(arguments: list[str] | None = None) -> int:
    """Times, prints and writes everything; returns the exit code."""
    options = parse(arguments)
    reason = missing()
    if reason:
        print(f"benchmarks.operators.blend_cuda: nothing timed: {reason}", file=sys.stderr)
        return 2
    console = wide_console(190)
    clock = CudaClock(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)
    machine = this_gpu(copy_rate(clock, megabytes=1024, device="cuda"))
    console.print(f"{machine}", highlight=False)
    write(run(options, clock, machine.copy_gb_per_s, console), machine, options.output, console)
    return 0


def write(records: Sequence[CudaRecord], machine: CudaMachine, output: Path, console: Console) -> None:
    """Writes the CSV file and the plot, and prints the table and the bars.

    Args:
        records: The measurements.
        machine: The GPU.
        output: The folder to write to.
        console: Where to print.
    """
    output.mkdir(parents=True, exist_ok=True)
    cuda_report.print_table(records, machine, console)
    write_csv(records, output / "blend_cuda.csv", machine=machine)
    cuda_report.write_plot(records, machine, output / "blend_cuda.png")
    console.print(f"wrote {output / 'blend_cuda.csv'} and {output / 'blend_cuda.png'}")
    print_bars(bars(records, machine.copy_gb_per_s), f"Bars, at V = {BAR_VOCAB}, from cold caches:", console)


if __name__ == "__main__":
    sys.exit(main())
