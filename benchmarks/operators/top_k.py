"""Times the operators on a top-k teacher beside those on full logits: `python -m benchmarks.operators.top_k`.

Prints a table and the bar: a row costs at most 0.6 of dense `solve` at V = 151,936, k = 20 and 64. All methods are
checked against `trbext.reference_top_k` before they are timed, and take turns in one process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from rich.console import Console
from torch import Tensor

import trbext
from trbext import TopK
from trbext.results import Sample, Solution

from ..harness.bars import Bar, print_bars, quotient
from ..harness.correctness import REFERENCE_ROWS, WrongAnswer, check_top_k
from ..harness.machine import this_machine, wide_console
from ..harness.rows import language_model_rows
from ..harness.timing import Method, time_interleaved
from . import peers

BAR_VOCAB, BAR_KS, BAR = 151_936, (20, 64), 0.6
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def methods(student: Tensor, teacher: Tensor, ks: list[int], epsilon: float) -> list[Method]:
    """Makes everything to time on one pair of inputs.

    Args:
        student: [N, V] logits.
        teacher: [N, V] logits.
        ks: How many tokens the teacher lists.
        epsilon: KL budget, nats.
    """
    uniform = torch.rand(len(student), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = [
        Method("solve", lambda: trbext.solve(student, teacher, epsilon)),
        Method("sample", lambda: trbext.sample(student, teacher, epsilon, uniform=uniform)),
    ]
    for k in ks:
        values, ids = teacher.float().log_softmax(-1).topk(k)
        top = TopK(ids, values)
        found += [
            Method(f"solve, k = {k}", _solve(student, top, epsilon), _right(student, top, epsilon)),
            Method(f"sample, k = {k}", _sample(student, top, epsilon, uniform), _right(student, top, epsilon)),
        ]
    return found


def _solve(student: Tensor, top: TopK, epsilon: float) -> Callable[[], Solution]:
    return lambda: trbext.solve(student, top, epsilon)


def _sample(student: Tensor, top: TopK, epsilon: float, uniform: Tensor) -> Callable[[], Sample]:
    return lambda: trbext.sample(student, top, epsilon, uniform=uniform)


def _right(student: Tensor, top: TopK, epsilon: float) -> Callable[[Solution | Sample], None]:
    """Returns a check of beta and KL on the first rows."""
    few = slice(REFERENCE_ROWS)
    return lambda found: check_top_k(student[few], TopK(top.ids[few], top.log_probs[few]), epsilon, found)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the words after `python -m benchmarks.operators.top_k`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operators.top_k", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("--vocab", type=int, default=BAR_VOCAB, metavar="V", help="default %(default)s")
    parser.add_argument("--rows", type=int, default=16, metavar="N", help="default %(default)s")
    parser.add_argument("--k", type=int, nargs="+", default=list(BAR_KS), metavar="K", help="default 20 64")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--epsilon", type=float, default=0.02, help="the budget in nats (default %(default)s)")
    parser.add_argument("--repetitions", type=int, default=30, metavar="R", help="default %(default)s")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="per dtype (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.rows < 1 or not all(1 <= k <= options.vocab for k in options.k) or options.repetitions < 3:
        parser.error("--rows must be at least 1, --k from 1 to --vocab, --repetitions at least 3")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Times, prints the table and the bars; returns the exit code."""
    options = parse(arguments)
    console: Console = wide_console(120)
    console.print(f"{this_machine()}; V = {options.vocab}, N = {options.rows}, epsilon = {options.epsilon}")
    student, teacher = language_model_rows(options.rows, options.vocab)
    bars: list[Bar] = []
    for dtype in options.dtype:
        pair = student.to(DTYPES[dtype]), teacher.to(DTYPES[dtype])
        try:
            timed = methods(*pair, options.k, options.epsilon)
            time_interleaved(timed, peers.read(*pair), repetitions=options.repetitions, seconds=options.seconds)
        except WrongAnswer as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        medians = {method.name: method.median for method in timed}
        for name, seconds in medians.items():
            ratio = quotient(seconds, medians["solve"])
            microseconds = "-" if seconds is None else f"{seconds * 1e6 / options.rows:.1f}"
            console.print(f"  {dtype:8}  {name:16} {microseconds:>8} us per row, {ratio:.3f} of solve", highlight=False)
            if name.startswith("solve,"):
                at_bar = options.vocab == BAR_VOCAB
                bars.append(Bar(f"{dtype}: {name}, of dense solve", ratio if at_bar else None, False, BAR))
    print_bars(bars, f"Bars, at V = {BAR_VOCAB}:", console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
