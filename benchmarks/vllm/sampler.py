"""Times the sampler of an engine's step: verify beside vLLM's rejection sampler (`python -m benchmarks.vllm.sampler`).

Both get the same tensors of a step of a running engine, filled with rows like a language model's: the teacher's logits
in bfloat16, and the student's probabilities in float32. Calls are interleaved; numbers are medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trbext
from trbext.vllm.sampler.step_records import NO_KEY

from ..harness.bars import Bar, print_bars, quotient
from ..harness.machine import this_machine, wide_console
from ..harness.records import write_csv
from ..harness.rows import language_model_rows
from ..harness.table import print_table
from ..harness.timing import Method, time_interleaved
from .engines import configure, mend_stock_sampler, runner_of, start, write_small_llama

STOCK = "vLLM's rejection sampler"
PROMPT = [1, 2, 3, 4]


@dataclass(frozen=True)
class Record:
    """One sampler on one shape."""

    method: str
    vocab: int
    batch: int
    draft_length: int
    milliseconds: float  # median of a step
    fastest: float
    floor: float  # the time of one read of the step's logits and probabilities at the speed of a copy


class SamplerTimes:
    """Times the samplers inside the first step of an engine in which every request has all its drafts.

    Args:
        vocab: Logits of both models.
        batch: Requests.
        draft_length: Drafts of each.
        epsilons: KL budgets in nats.
        seconds: For all methods together.
    """

    def __init__(self, vocab: int, batch: int, draft_length: int, epsilons: Sequence[float], seconds: float) -> None:
        from trbext.vllm.client import EngineRollouts
        from trbext.vllm.engine import engine_args
        from trbext.vllm.local import LocalEngine
        from trbext.vocab import Alignment

        self.methods: list[Method] = []
        self._shape, self._epsilons, self._seconds = (vocab, batch, draft_length), epsilons, seconds
        with tempfile.TemporaryDirectory() as folder:
            model = write_small_llama(Path(folder), vocab)
            arguments = engine_args(model, model, draft_length=draft_length, max_num_seqs=batch)
            llm = start({**arguments, "max_model_len": 128, "dtype": "bfloat16", "skip_tokenizer_init": True})
        self._runner = runner_of(llm)
        rollouts = EngineRollouts(LocalEngine(llm), Alignment(vocab, (0,), (0,)), pad_token_id=0)
        self._hook = self._runner._trb_hook
        self._runner._sample = self._sample
        rollouts.draw([PROMPT] * batch, epsilon=epsilons[0], max_new_tokens=4 * draft_length, seed=0)

    def _sample(self, logits: Any, metadata: Any) -> Any:
        tokens = self._hook.sample(logits, metadata)
        _, batch, draft_length = self._shape
        if not self.methods and metadata is not None and metadata.draft_token_ids.numel() == batch * draft_length:
            self._time(logits, metadata)
        return tokens

    def _time(self, logits: Any, metadata: Any) -> None:
        # 1. The step's tensors keep their layout, and hold rows like a language model's.
        vocab, batch, draft_length = self._shape
        probs = self._runner._draft_probs
        kept = logits.clone(), probs.clone(), metadata.draft_token_ids.clone()
        student, teacher = language_model_rows(batch * draft_length, vocab)
        drafts = trbext.sample(student, student, 0.0, generator=torch.Generator().manual_seed(0)).token
        probs.copy_(student.softmax(-1).view_as(probs))
        logits[metadata.target_logits_indices] = teacher.to(logits.dtype)
        metadata.draft_token_ids.copy_(drafts)
        del student, teacher
        # 2. The samplers. The hook reads the budget and what to record from the requests of the batch.
        hook, keys = self._hook, self._hook._keys

        def verify(epsilon: float, *, recorded: bool = True, top_k: int = 0) -> Any:
            hook._epsilons.fill_(epsilon)
            hook._keys = keys if recorded else np.full_like(keys, NO_KEY)
            hook.settings = dataclasses.replace(hook.settings, top_k=top_k)
            return hook.sample(logits, metadata)

        self.methods = [
            Method(STOCK, lambda: type(self._runner)._sample(self._runner, logits, metadata)),
            *(Method(f"verify, epsilon {epsilon:g}", partial(verify, epsilon)) for epsilon in self._epsilons),
            Method("verify, nothing recorded", partial(verify, self._epsilons[0], recorded=False)),
            Method("verify, teacher's top 16 recorded", partial(verify, self._epsilons[0], top_k=16)),
        ]
        time_interleaved(self.methods, lambda: probs.sum(), repetitions=15, seconds=self._seconds)
        # 3. The engine continues with its own step.
        verify(self._epsilons[0])
        logits.copy_(kept[0])
        probs.copy_(kept[1])
        metadata.draft_token_ids.copy_(kept[2])

    def records(self, copy_rate: float) -> list[Record]:
        """Return a record per method.

        Args:
            copy_rate: Bytes per second that a copy reads and writes on this machine.
        """
        vocab, batch, draft_length = self._shape
        floor = batch * draft_length * vocab * (2 + 4) / copy_rate
        return [
            Record(method.name, vocab, batch, draft_length, 1e3 * method.median, 1e3 * method.fastest, 1e3 * floor)
            for method in self.methods
            if method.median is not None and method.fastest is not None
        ]


def copy_rate() -> float:
    """Return the bytes per second that a copy of 256 MiB reads and writes, the best of five."""
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    copy = Method("copy", lambda: target.copy_(source))
    time_interleaved([copy], lambda: None, repetitions=5, seconds=5)
    assert copy.fastest is not None
    return 2 * source.nbytes / copy.fastest


def bars(records: Sequence[Record]) -> list[Bar]:
    """Return the bar of each shape: verify is never slower than vLLM's sampler."""
    found = []
    for vocab, batch in dict.fromkeys((record.vocab, record.batch) for record in records):
        times = {r.method: r.milliseconds for r in records if (r.vocab, r.batch) == (vocab, batch)}
        slowest = max(time for name, time in times.items() if name.startswith("verify, epsilon"))
        text = f"V = {vocab:,}, {batch} requests: the slowest budget over vLLM's sampler"
        found.append(Bar(text, quotient(slowest, times.get(STOCK)), at_least=False, limit=1.0))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vllm.sampler", description=__doc__)
    parser.add_argument("--vocab", type=int, nargs="+", default=[49152, 151936], help="logits (default: %(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64], help="requests (default: %(default)s)")
    parser.add_argument("--draft-length", type=int, default=4, help="drafts of each (default: %(default)s)")
    parser.add_argument(
        "--epsilon", type=float, nargs="+", default=[0.02, 0.0, 0.2, math.inf], help="nats (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the engine (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="for each shape (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="write the records to this file")
    options = parser.parse_args(arguments)
    configure(options.threads)
    mend_stock_sampler()
    records, rate = [], copy_rate()
    for vocab in options.vocab:
        for batch in options.batch:
            times = SamplerTimes(vocab, batch, options.draft_length, options.epsilon, options.seconds)
            records += times.records(rate)
    console, machine = wide_console(120), this_machine()
    stock = {(record.vocab, record.batch): record.milliseconds for record in records if record.method == STOCK}
    print_table(
        console,
        f"The sampler of an engine's step\n{machine}",
        ("logits", "requests", "method", "ms", "least", "vLLM's / this", "floor, ms"),
        (
            (
                f"{record.vocab:,}",
                str(record.batch),
                record.method,
                f"{record.milliseconds:.1f}",
                f"{record.fastest:.1f}",
                f"{stock[record.vocab, record.batch] / record.milliseconds:.2f}",
                f"{record.floor:.1f}",
            )
            for record in records
        ),
        left=("method",),
        caption="floor: one read of the step's logits and probabilities at the speed of a copy on this machine",
    )
    print_bars(bars(records), "Bars", console)
    if options.csv:
        write_csv(records, options.csv, machine=machine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
