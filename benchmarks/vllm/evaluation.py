"""Times `trb eval` by our own decoder and by an engine of vLLM (`python -m benchmarks.vllm.evaluation --model DIR`).

Each way runs in a process of its own, one after the other, on the same prompts, seeds and precision. A rate is that of
the record: completions in the seconds from its opening to its last completion. The start of the engine is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..harness.bars import Bar, print_bars, quotient
from ..harness.machine import this_machine, wide_console
from ..harness.records import write_csv
from ..harness.table import print_table

GAIN = 3.0  # that the engine must have over our decoder
# On a CPU vLLM keeps a core for its server unless it is told otherwise. Both ways have all of them.
CORES = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(torch.get_num_threads())}


@dataclass(frozen=True)
class Record:
    """One way to draw the completions."""

    method: str
    completions: int
    tokens: int
    seconds: float  # of drawing and judging
    whole_seconds: float  # of the command, with imports, loading, and the start of the engine
    pass_at_1: float

    @property
    def rate(self) -> float:
        """Completions a second."""
        return self.completions / self.seconds


def timed(method: str, words: Sequence[str], output: Path, wanted: int, engine: Sequence[str] = ()) -> Record:
    """Runs `trb eval` in a process of its own, and reads what it recorded.

    Args:
        method: Its name in the table.
        words: What is evaluated.
        output: The record, a new file.
        wanted: How many completions it must have.
        engine: Further words.
    """
    command = [sys.executable, "-m", "trbext", "eval", *words, "--output", str(output), *engine]
    start = time.perf_counter()
    code = subprocess.run(command, stdout=subprocess.DEVNULL, env=CORES | os.environ).returncode
    whole = time.perf_counter() - start
    if code:
        raise SystemExit(f"trb eval by {method} ended with exit code {code}: its last line says why")
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    drawn = [line for line in lines if "completion" in line]
    right = [line["correct"] for line in lines if "correct" in line]
    assert len(right) == len(drawn)
    if len(drawn) != wanted:
        raise SystemExit(f"--prompts must have as many prompts as --limit: {len(drawn)} completions, not {wanted}")
    return Record(
        method,
        len(drawn),
        sum(line["tokens"] for line in drawn),
        max(line["seconds"] for line in drawn),
        whole,
        sum(right) / len(right),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Times both, and prints them with their bar; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vllm.evaluation", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a folder, such as the teacher of smollm2_pruned.py")
    parser.add_argument("--prompts", type=Path, required=True, help="a .jsonl with prompts and answers")
    parser.add_argument("--verifier", default="numeric", help="of the completions (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=64, help="prompts (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=4, help="completions of each (default: %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=128, help="of a completion (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=int, nargs="+", default=[32, 256], help="of our decoder (default: %(default)s)"
    )
    parser.add_argument("--csv", type=Path, help="write the records to this file")
    parser.add_argument("flags", nargs="*", help="of vLLM, after --")
    options = parser.parse_args(arguments)
    wanted = options.limit * options.samples
    words = [str(options.model), "--prompts", str(options.prompts), "--verifier", options.verifier]
    words += ["--limit", str(options.limit), "--samples", str(options.samples)]
    words += ["--max-completion-length", str(options.new_tokens)]
    console, machine = wide_console(120), this_machine()
    with tempfile.TemporaryDirectory() as folder:
        engine = ["--engine", "vllm", *(["--", *options.flags] if options.flags else [])]
        records = [timed("vLLM", words, Path(folder) / "vllm.jsonl", wanted, engine)]
        for size in options.batch_size:
            own = ["--batch-size", str(size)]
            records.append(timed(f"ours, {size} at a time", words, Path(folder) / f"{size}.jsonl", wanted, own))
    print_table(
        console,
        f"trb eval: {options.limit} prompts x {options.samples} samples\n{machine}",
        ("method", "completions/s", "tokens/s", "tokens", "seconds", "with the start", "pass@1"),
        (
            (
                record.method,
                f"{record.rate:.2f}",
                f"{record.tokens / record.seconds:.0f}",
                f"{record.tokens:,}",
                f"{record.seconds:.1f}",
                f"{record.whole_seconds:.1f}",
                f"{record.pass_at_1:.3f}",
            )
            for record in records
        ),
        left=("method",),
    )
    best = max(record.rate for record in records[1:])
    print_bars([Bar("vLLM over our decoder at its best", quotient(records[0].rate, best), True, GAIN)], "Bar", console)
    if options.csv:
        write_csv(records, options.csv, machine=machine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
