"""Models what speculation should gain on a GPU: `python -m benchmarks.models.rollout_model`. Nothing here was timed.

A forward of a model with P parameters in bfloat16 over n tokens of B rows reads its weights and the rows' keys and
values once and computes 2 P n B floating-point operations. The longer of the two counts, and the launch adds an
overhead:

    t(P, n) = overhead + max( (2 P + B L kv) / bandwidth , 2 P n B / peak )

with L tokens of context and kv bytes of keys and values per token. At epsilon, a = 1 - sqrt(epsilon / pi) of the drafts
are accepted (numerically D is close to Gaussian if the budget binds), a round of draft length k emits
E(k) = (1 - a^(k+1)) / (1 - a) tokens, and

    gain(k) = ( t(S, 1) + t(T, 1) ) / ( ( (k+1) t(S, 1) + t(T, k+1) ) / E(k) ).

While B (k + 1) stays below peak / bandwidth = 295 tokens (H100) the teacher's pass costs as much as one token; above,
it is bound by arithmetic, and rejected drafts cost time.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from trbext.rollout.draft_length import LONGEST

from ..harness.table import print_table

BANDWIDTH, PEAK = 3.35e12, 989e12  # H100 SXM: bytes and dense bfloat16 operations a second
CONTEXT = 2048  # tokens
EAGER = 20e-3  # seconds in which transformers' Python launches one step of some 30 layers; CUDA graphs avoid it


@dataclass(frozen=True)
class Model:
    """The bytes that one forward of a Qwen3 model reads, and its arithmetic."""

    parameters: float
    layers: int
    key_value_heads: int = 8
    head: int = 128

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values per token."""
        return 2 * 2 * self.layers * self.key_value_heads * self.head

    def seconds(self, tokens: int, rows: int, overhead: float) -> float:
        """Returns the seconds of one forward.

        Args:
            tokens: Tokens per row.
            rows: Rows of the batch.
            overhead: Seconds of the launch.
        """
        read = (2 * self.parameters + rows * CONTEXT * self.kv_bytes) / BANDWIDTH
        return overhead + max(read, 2 * self.parameters * tokens * rows / PEAK)


PAIRS = {
    "1.7B <- 8B": (Model(1.7e9, 28), Model(8.2e9, 36)),
    "0.6B <- 4B": (Model(0.6e9, 28), Model(4.0e9, 36)),
    "1.7B <- 32B": (Model(1.7e9, 28), Model(32.8e9, 64)),
}


def acceptance(epsilon: float) -> float:
    """Returns the share of drafts that are accepted at the KL budget `epsilon` in nats."""
    return 1 - math.sqrt(epsilon / math.pi)


def emitted(k: int, a: float) -> float:
    """Returns the tokens that a round of draft length k emits if the share `a` of drafts is accepted."""
    return (1 - a ** (k + 1)) / (1 - a)


def gain(student: Model, teacher: Model, k: int, *, rows: int, epsilon: float, overhead: float) -> float:
    """Returns tokens per second over those of lockstep.

    Args:
        student: The model that drafts.
        teacher: The model that verifies.
        k: Drafts per round.
        rows: Rows of the batch.
        epsilon: KL budget, nats.
        overhead: Seconds of a launch.
    """
    step, first = student.seconds(1, rows, overhead), teacher.seconds(1, rows, overhead)
    rounds = (k + 1) * step + teacher.seconds(k + 1, rows, overhead)
    return (step + first) * emitted(k, acceptance(epsilon)) / rounds


def best(student: Model, teacher: Model, *, rows: int, epsilon: float, overhead: float) -> tuple[int, float]:
    """Returns the best k and its gain.

    Args:
        student: The model that drafts.
        teacher: The model that verifies.
        rows: Rows of the batch.
        epsilon: KL budget, nats.
        overhead: Seconds of a launch.
    """
    gains = {k: gain(student, teacher, k, rows=rows, epsilon=epsilon, overhead=overhead) for k in range(LONGEST + 1)}
    k = max(gains, key=gains.__getitem__)
    return k, gains[k]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table of gains."""
    argparse.ArgumentParser(prog="python -m benchmarks.models.rollout_model", description=__doc__).parse_args(arguments)
    epsilons = (0.005, 0.01, 0.05, 0.2)
    rows = []
    for name, (student, teacher) in PAIRS.items():
        for launching, overhead in (("CUDA graphs", 0.0), ("eager", EAGER)):
            for batch in (1, 32, 256):
                cells = [best(student, teacher, rows=batch, epsilon=epsilon, overhead=overhead) for epsilon in epsilons]
                rows.append([name, launching, str(batch), *(f"{value:.2f} ({k})" for k, value in cells)])
    title = f"Gain of speculation over lockstep (best k): a model of an H100, context {CONTEXT}"
    headings = ("pair", "launching", "batch", *(f"epsilon {epsilon:g}" for epsilon in epsilons))
    print_table(Console(width=110), title, headings, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
