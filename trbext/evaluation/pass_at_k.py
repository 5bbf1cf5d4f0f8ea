"""Measures pass@k: samples completions from the student and has a verifier judge them.

The paper (arXiv 2605.31159) reports pass@1 = c/n at temperature 1, with n samples of each prompt of which c are right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, Any

import torch

from ..data.encoding import Prompt, encode_prompts, left_padded
from ..rollout import lockstep
from ..vocab import Alignment, align
from .verifiers import Verifier, judge

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    verifier: Verifier,
    *,
    samples: int = 1,
    max_new_tokens: int = 512,
    batch_size: int = 32,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    alignment: Alignment | None = None,
    encode: Callable[[list[Prompt]], list[list[int]]] | None = None,
) -> Evaluation:
    """Samples completions of every row's "prompt" from the student, without a teacher, and judges them.

    Args:
        student: The model to sample from.
        tokenizer: The student's.
        rows: Each holds "prompt" (text or messages) and what the verifier reads.
        verifier: Is called as verifier(prompt, completion, row), the prompt as in the row, the completion decoded
            without special tokens; returns True or False (1 or 0). If it raises, the completion counts as wrong, the
            error is logged, and the evaluation continues; the caller checks whether it always raised
            (`check_verified`).
        samples: Completions per prompt.
        max_new_tokens: Longest completion, in tokens.
        batch_size: Completions decoded at a time.
        temperature: Of the sampling.
        generator: Equal seeds, rows and batch sizes give equal completions.
        alignment: The student's with itself, if the caller has it; only its EOS ids and its width are read.
        encode: Turns prompts into token ids. By default the tokenizer does, through its chat template for messages.

    Returns:
        The judged completions; pass@1 is `.pass_at(1)`.

    Raises:
        ValueError: `samples` or `batch_size` is below 1.
    """
    # 1. Check the arguments, and complete those that were not given.
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    alignment = alignment or align(student, student, tokenizer, tokenizer)
    encode = encode or (lambda prompts: encode_prompts(tokenizer, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else alignment.stop
    # 2. Sample the completions, a batch at a time.
    texts: list[list[str]] = [[] for _ in rows]
    clipped = tokens = 0
    tasks = [index for index in range(len(rows)) for _ in range(samples)]
    for start in range(0, len(tasks), batch_size):
        batch = tasks[start : start + batch_size]
        input_ids, mask = left_padded(encode([rows[index]["prompt"] for index in batch]), pad, student.device)
        rollout = lockstep(
            student,
            None,
            input_ids,
            mask,
            epsilon=0.0,
            max_new_tokens=max_new_tokens,
            alignment=alignment,
            pad_token_id=pad,
            temperature=temperature,
            generator=generator,
        )
        clipped += int((~rollout.finished).sum())
        tokens += int(rollout.lengths.sum())
        for index, ids, kept in zip(batch, rollout.tokens, rollout.mask, strict=True):
            texts[index].append(str(tokenizer.decode(ids[kept], skip_special_tokens=True)))
    # 3. Judge them.
    correct, errors, first_error = judge(rows, texts, verifier)
    return Evaluation(samples, correct, texts, errors, first_error, clipped, tokens)
