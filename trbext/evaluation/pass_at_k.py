"""Measures pass@k: samples completions from the student and has a verifier judge them.

The paper (arXiv 2605.31159) reports pass@1 = c/n at temperature 1, with n samples of each prompt of which c are right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

from .tasks import Completion, Decoder, Task, tasks_of
from .verifiers import Verifier, judge


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimates, without bias, the probability that at least one of k samples is right (arXiv 2107.03374).

    Args:
        n: Samples that were drawn.
        c: Samples that are right, 0 <= c <= n.
        k: 1 <= k <= n.

    Returns:
        1 - C(n-c, k) / C(n, k).

    Raises:
        ValueError: c or k is out of range.
    """
    if not 0 <= c <= n:
        raise ValueError(f"c must be between 0 and n = {n}, got {c}")
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and n = {n}, got {k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


@dataclass(frozen=True)
class Evaluation:
    """The judged completions of a set of prompts."""

    samples: int  # n, completions per prompt
    correct: list[int]  # c of each prompt
    completions: list[list[str]]  # n texts of each prompt
    verifier_errors: int  # completions counted as wrong because the verifier raised
    first_error: str | None  # what it raised first
    clipped: int  # completions cut by the length limit
    tokens: int  # generated, EOS included

    def pass_at(self, k: int) -> float:
        """Returns the mean of `pass_at_k` over the prompts, NaN without prompts."""
        if not self.correct:
            return float("nan")
        return sum(pass_at_k(self.samples, c, k) for c in self.correct) / len(self.correct)


def evaluate_pass_at_1(
    decoder: Decoder,
    rows: Sequence[Mapping[str, Any]],
    prompt_ids: Sequence[Sequence[int]],
    verifier: Verifier,
    *,
    samples: int = 1,
    max_new_tokens: int = 512,
) -> Evaluation:
    """Draws completions of every row's "prompt" in memory, without a teacher, and judges them.

    Args:
        decoder: Of the student.
        rows: Each holds "prompt" (text or messages) and what the verifier reads.
        prompt_ids: The token ids of each row's prompt.
        verifier: Is called as verifier(prompt, completion, row), the prompt as in the row, the completion decoded
            without special tokens; returns True or False (1 or 0). If it raises, the completion counts as wrong, the
            error is logged, and the evaluation continues; the caller checks whether it always raised
            (`check_verified`).
        samples: Completions per prompt.
        max_new_tokens: Longest completion, in tokens.

    Returns:
        The judged completions; pass@1 is `.pass_at(1)`.

    Raises:
        ValueError: `samples` is below 1.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    prompts = [row["prompt"] for row in rows]
    tasks = tasks_of("", prompts, prompt_ids, samples=samples, seed=0, max_new_tokens=max_new_tokens)
    drawn: dict[Task, Completion] = {}
    for _ in decoder.draw(tasks, lambda task: task not in drawn, drawn.__setitem__):
        pass
    texts = [[drawn[task].text for task in tasks[start : start + samples]] for start in range(0, len(tasks), samples)]
    correct, errors, first_error = judge(rows, texts, verifier)
    clipped = sum(not completion.finished for completion in drawn.values())
    tokens = sum(completion.tokens for completion in drawn.values())
    return Evaluation(samples, correct, texts, errors, first_error, clipped, tokens)
