"""Measures pass@1 of the student on the held-out prompts of all processes, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset

from ...evaluation.pass_at_k import evaluate_pass_at_1
from ...evaluation.tasks import Decoder
from ...evaluation.verifiers import Verifier, check_verified

if TYPE_CHECKING:
    from accelerate import Accelerator


def measure_pass_at_1(
    dataset: Any,
    decoder: Decoder,
    verifier: Verifier,
    *,
    encode: Callable[[list[Any]], list[list[int]]],
    accelerator: Accelerator,
    samples: int,
    max_new_tokens: int,
) -> dict[str, float]:
    """Returns pass@1, its cost, and the number of completions on which the verifier raised. Every process calls it.

    pass@1 is the share of right completions; one on which the verifier raised is wrong.

    Args:
        dataset: The held-out prompts.
        decoder: Draws from the student, at temperature 1.
        verifier: Judges.
        encode: Turns prompts into token ids.
        accelerator: Of the run. Each process takes every n-th prompt.
        samples: Completions of a prompt.
        max_new_tokens: Of a completion.

    Returns:
        By the names that follow the prefix of an evaluation.

    Raises:
        ValueError: The dataset has no known length, or the verifier raised on every completion.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(f"pass@1 needs an eval_dataset of known length, got {type(dataset).__name__}")
    # 1. Draw and judge the completions of this process's prompts.
    start = time.perf_counter()
    rows: Sequence[dict[str, Any]] = [
        dataset[index] for index in range(accelerator.process_index, len(dataset), accelerator.num_processes)
    ]
    evaluation = evaluate_pass_at_1(
        decoder,
        rows,
        encode([row["prompt"] for row in rows]) if rows else [],
        verifier,
        samples=samples,
        max_new_tokens=max_new_tokens,
    )
    # 2. Count those of all processes.
    counted = [sum(evaluation.correct), evaluation.verifier_errors, evaluation.tokens]
    counts = accelerator.reduce(torch.tensor(counted, device=accelerator.device), reduction="sum")
    right, errors, tokens = counts.tolist()
    completions = len(dataset) * samples
    check_verified(errors, completions, evaluation.first_error)
    seconds = time.perf_counter() - start
    return {
        "pass@1": right / completions,
        "pass@1_runtime": seconds,
        "pass@1_tokens_per_second": tokens / seconds,
        "verifier_errors": errors,
    }
