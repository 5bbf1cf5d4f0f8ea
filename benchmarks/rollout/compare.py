"""Times rollouts by the student only, in lockstep and by speculation: `python -m benchmarks.rollout.compare`.

Every method of a case is called once per round, in random order and from the same seed, so that a drift of the machine
affects all alike. Numbers are medians over the rounds, also those of each round's ratio to lockstep. "auto" is
one `DraftLength` per case: its first call measures, which its first round shows. Prints one table and the bars; writes
rollout.csv and rollout.png.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from trbext.rollout import DraftLength, Rollout, speculative

from ..harness.bars import print_bars
from ..harness.machine import this_machine
from ..harness.records import write_csv
from ..harness.timing import Method, turns
from .pairs import Prompts, random_pair, smollm2_pair
from .report import RolloutRecord, bars, print_table, write_plot

FIXED = (2, 4, 8)
EPSILONS = (0.005, 0.01, 0.05, 0.2, 1.0)
BATCHES = (1, 4, 32)
NEW_TOKENS = {1: 64, 4: 32, 32: 24}  # by batch size; few, because a fixed k that loses takes long


@dataclass
class Decoder:
    """One way to decode a case, with the seconds and the result of each call."""

    draft_length: int | str | DraftLength
    epsilon: float
    seconds: list[float] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)

    def call(self, pair: Prompts, batch: int, seed: int) -> None:
        """Decodes the case once, and keeps the seconds and the rollout.

        Args:
            pair: The models and the prompts.
            batch: Number of prompts.
            seed: Of the random numbers.
        """
        start = time.perf_counter()
        rollout = speculative(
            pair.student,
            pair.teacher,
            *pair.first(batch),
            epsilon=self.epsilon,
            max_new_tokens=NEW_TOKENS[batch],
            alignment=pair.alignment,
            pad_token_id=pair.pad_token_id,
            draft_length=self.draft_length,  # type: ignore[arg-type]
            generator=torch.Generator().manual_seed(seed),
        )
        self.seconds.append(time.perf_counter() - start)
        self.rollouts.append(rollout)

    def rates(self) -> list[float]:
        """Returns the tokens per second of each call."""
        return [int(rollout.mask.sum()) / seconds for rollout, seconds in zip(self.rollouts, self.seconds, strict=True)]

    def record(self, pair: Prompts, batch: int, epsilon: float, name: str, lockstep: list[float]) -> RolloutRecord:
        """Makes the record of all calls.

        Args:
            pair: The models and the prompts.
            batch: Number of prompts.
            epsilon: KL budget, nats.
            name: The method's.
            lockstep: Tokens per second of lockstep in the same rounds.
        """
        rates = self.rates()
        parts = [rollout.speculation for rollout in self.rollouts if rollout.speculation is not None]
        tokens = sum(int(rollout.mask.sum()) for rollout in self.rollouts)
        passes: float | None = None
        if name != "student":  # in lockstep each token needs one pass of its row
            passes = sum(part.row_passes for part in parts) / tokens if parts else 1.0
        tested = sum(part.drafted for part in parts)
        return RolloutRecord(
            pair.name,
            batch,
            epsilon,
            name,
            statistics.median(rates),
            rates[0],
            statistics.median(rate / of_lockstep for rate, of_lockstep in zip(rates, lockstep, strict=True)),
            len(rates),
            sum(part.accepted for part in parts) / tested if tested else None,
            passes,
        )


def time_case(pair: Prompts, batch: int, epsilon: float, rounds: int, lengths: Sequence[int]) -> list[RolloutRecord]:
    """Times all methods on one batch at one budget.

    Args:
        pair: The models and the prompts.
        batch: Number of prompts.
        epsilon: KL budget, nats.
        rounds: Calls of each method.
        lengths: The fixed draft lengths k, tokens.
    """
    decoders = {"student": Decoder(0, 0.0), "lockstep": Decoder(0, epsilon)}
    decoders |= {f"k = {k}": Decoder(k, epsilon) for k in lengths}
    decoders["auto"] = Decoder(DraftLength(), epsilon)
    decoders["lockstep"].call(pair, batch, seed=0)  # warmup, not counted
    decoders["lockstep"] = Decoder(0, epsilon)
    methods = {name: Method(name, call=lambda: None) for name in decoders}
    counts = {id(method): rounds for method in methods.values()}
    for method in turns(list(methods.values()), counts, rounds):
        decoder = decoders[method.name]
        decoder.call(pair, batch, seed=len(decoder.seconds))
    lockstep = decoders["lockstep"].rates()
    return [decoder.record(pair, batch, epsilon, name, lockstep) for name, decoder in decoders.items()]


def cases(options: argparse.Namespace) -> Iterator[tuple[Prompts, int, float]]:
    """Yields the models, batch size and budget of each case."""
    pairs: list[Prompts] = []
    batch = max(options.batches)
    if "random" in options.pairs:
        pairs.append(random_pair(batch))
    if "smollm2" in options.pairs:
        pairs.append(smollm2_pair(options.real_models, batch))
    for pair in pairs:
        for size in options.batches:
            for epsilon in options.epsilons:
                yield pair, size, epsilon


def main(arguments: Sequence[str] | None = None) -> int:
    """Times every case, prints the table and the bars, and writes CSV file and plot; returns the exit code."""
    # 1. Parse the command line.
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollout.compare", description=__doc__)
    parser.add_argument("--pairs", nargs="+", choices=["random", "smollm2"], default=["random"])
    parser.add_argument("--real-models", type=Path, help="folder written by recipes/smollm2_pruned.py, for smollm2")
    parser.add_argument("--batches", nargs="+", type=int, choices=BATCHES, default=BATCHES, help="default: %(default)s")
    parser.add_argument("--epsilons", nargs="+", type=float, default=EPSILONS, help="nats; default: %(default)s")
    parser.add_argument(
        "--lengths",
        nargs="*",
        type=int,
        default=FIXED,
        metavar="K",
        help="fixed draft lengths, may be none; default: %(default)s",
    )
    parser.add_argument("--rounds", type=int, default=5, help="calls of each method (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder of rollout.csv and .png (default: here)")
    options: Any = parser.parse_args(arguments)
    if "smollm2" in options.pairs and options.real_models is None:
        parser.error("--pairs smollm2 needs --real-models")
    # 2. Time each case.
    machine, console = this_machine(), Console(width=150)
    options.output.mkdir(parents=True, exist_ok=True)
    records: list[RolloutRecord] = []
    for pair, batch, epsilon in cases(options):
        found = time_case(pair, batch, epsilon, options.rounds, options.lengths)
        records += found
        rates = ", ".join(f"{record.method} {record.tokens_per_s:.1f}" for record in found)
        console.print(f"{pair.name}, batch {batch}, epsilon {epsilon:g}, tokens/s: {rates}")
        # Written after each case, so that an interrupted run keeps its finished cases.
        write_csv(records, options.output / "rollout.csv", machine=machine)
    # 3. Print and plot everything.
    print_table(records, machine, console)
    print_bars(bars(records), "Bars:", console)
    write_plot(records, machine, options.output / "rollout.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
