"""Times rollouts in vLLM: TRB, vLLM's own speculation, and the student only (`python -m benchmarks.vllm.throughput`).

Speculation of vLLM's own draws the teacher's tokens; the student only draws its own. TRB draws from mu. All run in one
process on the same prompts, interleaved; numbers are medians of whole batches.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trbext.vllm.requests import HELD_OUT

from ..harness.machine import this_machine, wide_console
from ..harness.records import write_csv
from ..harness.table import print_table
from ..harness.timing import Method, time_interleaved
from ..operators.decoding import load_pair
from .engines import configure, mend_stock_sampler, runner_of, start


@dataclass(frozen=True)
class Record:
    """One way to decode the batch."""

    method: str
    tokens_per_second: float
    tokens_per_pass: float  # of the larger model, per request
    acceptance: float  # of the drafts that were tested; NaN without drafts
    expected_acceptance: float  # 1 - sqrt(epsilon / pi), for models that differ a little at every token


@dataclass
class Decoding:
    """A method, and what its last call counted."""

    name: str
    call: Callable[[], tuple[int, float, float]]  # tokens, tokens per pass, acceptance
    expected: float = math.nan
    counts: tuple[int, float, float] = (0, math.nan, math.nan)

    def __call__(self) -> None:
        self.counts = self.call()


class Engines:
    """An engine of teacher and student, and one of the student only.

    Args:
        folder: Of recipes/smollm2_pruned.py.
        batch: Rollouts, decoded at once.
        new_tokens: Of each rollout, which no EOS ends.
        draft_length: Of the student.
        dtype: Of both models.
    """

    def __init__(self, folder: Path, batch: int, new_tokens: int, draft_length: int, dtype: str) -> None:
        from trbext.vllm.client import EngineRollouts
        from trbext.vllm.engine import engine_args, slack
        from trbext.vllm.local import LocalEngine

        pair = load_pair(folder)
        ids, mask = pair.prompts(batch)
        self._prompts = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
        longest = max(map(len, self._prompts)) + new_tokens + slack(draft_length)
        shared = {"max_model_len": longest, "dtype": dtype, "max_num_seqs": batch}
        teacher, student = (str(folder / name) for name in ("teacher", "student"))
        self._pair = start(engine_args(teacher, student, draft_length=draft_length, **shared))
        self._student = start({"model": student, **shared})
        self._new_tokens, self._draft_length = new_tokens, draft_length
        self._rollouts = EngineRollouts(LocalEngine(self._pair), pair.alignment, pad_token_id=pair.pad_token_id)
        self._hook = runner_of(self._pair)._trb_hook

    def trb(self, epsilon: float) -> tuple[int, float, float]:
        """Decode the batch from mu, and return its tokens, tokens per pass, and acceptance."""
        self._hook.install()
        drawn = self._rollouts.draw(self._prompts, epsilon=epsilon, max_new_tokens=self._new_tokens, seed=0)
        speculation = drawn.rollout.speculation
        assert speculation is not None
        tokens = int(drawn.rollout.mask.sum())
        return tokens, speculation.drafted / speculation.row_passes, speculation.acceptance

    def stock(self) -> tuple[int, float, float]:
        """Decode the batch by vLLM's own speculation, whose tokens are the teacher's."""
        self._hook.remove()
        runner, counts = runner_of(self._pair), [0, 0, 0]  # passes, accepted drafts, tested drafts

        def counted(logits: Any, metadata: Any) -> Any:
            output = type(runner)._sample(runner, logits, metadata)
            if metadata is not None:
                drafts = np.asarray(metadata.num_draft_tokens)
                accepted = (output.sampled_token_ids >= 0).sum(1).numpy()[drafts > 0] - 1
                tested = np.minimum(accepted + 1, drafts[drafts > 0])
                counts[:] = counts[0] + len(tested), counts[1] + accepted.sum(), counts[2] + tested.sum()
            return output

        runner._sample = counted
        tokens = self._decode(self._pair)
        passes, accepted, tested = counts
        return tokens, 1 + accepted / passes, accepted / tested

    def student(self) -> tuple[int, float, float]:
        """Decode the batch by the student only."""
        return self._decode(self._student), 1.0, math.nan

    def _decode(self, llm: Any) -> int:
        from vllm import SamplingParams

        parameters = SamplingParams(
            temperature=1.0,
            max_tokens=self._new_tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args={HELD_OUT: 0},  # the engine of the pair admits no other requests; vLLM's samplers ignore it
        )
        prompts = [{"prompt_token_ids": prompt} for prompt in self._prompts]
        return sum(len(one.outputs[0].token_ids) for one in llm.generate(prompts, parameters, use_tqdm=False))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vllm.throughput", description=__doc__)
    parser.add_argument("--real-models", type=Path, required=True, help="folder of recipes/smollm2_pruned.py")
    parser.add_argument("--batch", type=int, default=16, help="rollouts (default: %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of each rollout (default: %(default)s)")
    parser.add_argument("--draft-length", type=int, default=4, help="drafts of a round (default: %(default)s)")
    parser.add_argument(
        "--epsilon", type=float, nargs="+", default=[0.02, 0.2, math.inf], help="nats (default: %(default)s)"
    )
    parser.add_argument("--dtype", default="bfloat16", help="of both models (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the engine (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=240, help="for all methods (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="write the records to this file")
    options = parser.parse_args(arguments)
    configure(options.threads)
    mend_stock_sampler()
    engines = Engines(options.real_models, options.batch, options.new_tokens, options.draft_length, options.dtype)
    decodings = [
        Decoding("student only, one token a pass", engines.student),
        *(
            Decoding(f"TRB, epsilon {epsilon:g}", partial(engines.trb, epsilon), 1 - math.sqrt(epsilon / math.pi))
            for epsilon in options.epsilon
        ),
        Decoding("vLLM's speculation, the teacher's tokens", engines.stock),
    ]
    methods = [Method(decoding.name, decoding) for decoding in decodings]
    time_interleaved(methods, lambda: None, repetitions=7, seconds=options.seconds)
    records = [
        Record(decoding.name, decoding.counts[0] / method.median, *decoding.counts[1:], decoding.expected)
        for decoding, method in zip(decodings, methods, strict=True)
        if method.median is not None
    ]
    console, machine = wide_console(120), this_machine()
    print_table(
        console,
        f"{options.batch} rollouts of {options.new_tokens} tokens, {options.draft_length} drafts, {options.dtype}\n"
        f"{machine}",
        ("method", "tokens/s", "tokens per pass", "acceptance", "1 - sqrt(epsilon / pi)"),
        (
            (
                record.method,
                f"{record.tokens_per_second:.1f}",
                f"{record.tokens_per_pass:.2f}",
                *(
                    "" if math.isnan(x) or x < 0 else f"{x:.3f}"
                    for x in (record.acceptance, record.expected_acceptance)
                ),
            )
            for record in records
        ),
        left=("method",),
        caption="a pass: of the teacher over a request; of the student if it decodes without a teacher",
    )
    if options.csv:
        write_csv(records, options.csv, machine=machine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
