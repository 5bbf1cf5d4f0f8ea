"""Runs random rows through solve, sample, blend and verify, and checks every answer against float64.

    python -m python_tests.fuzz --rows 20000               # with a fresh seed, which is printed
    python -m python_tests.fuzz --seed 7 --batch 31        # one batch of a run again
    python -m python_tests.fuzz --rows 1000000 --state fuzz.json    # continues where the file ends

Rows have 1 to 300,000 tokens of any pair of dtypes, logits on scales of 1e-3 to 1e4, masks, ties, heavy tails,
subnormal numbers, nearly identical models; epsilon is 1e-9 to 50 or 0, inf, NaN, -1; the temperature 0.1 to 5.
Up to a hundred rows of a batch are checked with k tokens of the teacher as well.
docs/operators.md says what is checked and how closely. The exit status is 1 if any row fails.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from pathlib import Path

import torch

import trbext

from . import solved_rows, top_k_rows, verified_rows
from .random_rows import WIDEST, batch_of
from .tally import Tally

ELEMENTS = 400_000  # logits of either model in a batch: they fit the caches, and one row of the widest is checked alike


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m python_tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000, help="how many at least (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of all that is random (default: a fresh one)")
    parser.add_argument("--batch", type=int, help="only the batch of this number")
    parser.add_argument("--widest", type=int, default=WIDEST, help="most tokens of a row (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of torch (default: torch's own number)")
    parser.add_argument(
        "--state", type=Path, help="a file that keeps the counts, and from which the run continues if it exists"
    )
    return parser


def _started(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Tally:
    if options.widest < 1 or options.rows < 1:
        parser.error("--rows and --widest must be at least 1")
    if options.batch is not None and options.state is not None:
        parser.error("--batch is one batch again, and --state continues with the next: give one of the two")
    if options.state is not None and options.state.exists():
        tally = Tally.load(options.state)
        if options.seed not in (None, tally.seed) or options.widest != tally.widest:
            parser.error(f"{options.state} is of --seed {tally.seed} --widest {tally.widest}")
        return tally
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    return Tally(seed, options.widest, batches=options.batch or 0)


def _progress(tally: Tally, want: int, began: float, before: int) -> None:
    rate = (tally.rows - before) / (time.monotonic() - began)
    done = min(1.0, tally.rows / want)
    bar = "#" * int(30 * done)
    print(
        f"\r[{bar:30}] {tally.rows:,} of {want:,} rows, {rate:,.0f} rows/s, {tally.total} faults",
        end="",
        file=sys.stderr,
        flush=True,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    tally = _started(options, parser)
    print(f"seed {tally.seed}, CPU operators for {trbext._C.cpu_isa}", flush=True)
    began, before = time.monotonic(), tally.rows
    while tally.rows < options.rows:
        batch = batch_of(tally.seed, tally.batches, options.widest, ELEMENTS)
        found = solved_rows.check(batch) | verified_rows.check(batch, tally.seed) | top_k_rows.check(batch, tally.seed)
        tally.add(batch, found, min(len(batch), verified_rows.MOST_ROWS))
        if options.state is not None:
            tally.save(options.state)
        if sys.stderr.isatty() or tally.batches % 20 == 0:
            _progress(tally, options.rows, began, before)
        if options.batch is not None:
            break
    print(file=sys.stderr)
    print(tally.report())
    return int(tally.total > 0)


if __name__ == "__main__":
    sys.exit(main())
