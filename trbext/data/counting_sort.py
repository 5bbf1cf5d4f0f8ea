"""Counting sort as a reasoning task: the prompt is eight digits, the completion first counts, then sorts.

    prompt      50311758=
    completion  01122031405260718190#01135578      no 0 but one, two 1s, no 2, ...: read it as 01 12 20 31 40 52 ...

The completion is 30 tokens with its EOS. A wrong count early puts every later prefix where the teacher has seldom been,
which is the situation on-policy distillation meets in mathematics. Everything is a pure function of its arguments.
"""

from __future__ import annotations

import random
from typing import Literal

Split = Literal["train", "eval"]

DIGITS = 8
COMPLETION_TOKENS = 30  # ten (digit, count) pairs, '#', eight sorted digits, EOS

# Of the 10^8 prompts, those whose digits read as a multiple of this number are kept for evaluation and never trained
# on, whatever the seeds.
EVALUATION_MODULUS = 97
MOST_PROMPTS = 10**DIGITS // EVALUATION_MODULUS


def prompts(n: int, seed: int, split: Split = "train") -> list[str]:
    """`n` different prompts such as "50311758=", the same for the same arguments; no prompt is in both splits."""
    if split not in ("train", "eval"):
        raise ValueError(f'split must be "train" or "eval", got {split!r}')
    if not 0 <= n <= MOST_PROMPTS:
        raise ValueError(f"n must be in 0..{MOST_PROMPTS}, got {n}")
    rng = random.Random(f"{split} {seed}")
    drawn: dict[str, None] = {}  # a set that keeps the order of drawing
    while len(drawn) < n:
        number = rng.randrange(10**DIGITS)
        if (number % EVALUATION_MODULUS == 0) == (split == "eval"):
            drawn[f"{number:0{DIGITS}d}="] = None
    return list(drawn)


def prompts_dataset(n: int, seed: int, split: Split = "train") -> list[dict[str, str]]:
    """`prompts` as rows of a prompt-only dataset, TRL's plain-text format: [{"prompt": "50311758="}, ...]."""
    return [{"prompt": prompt} for prompt in prompts(n, seed, split)]


def correct_completion(prompt: str) -> str:
    """What the teacher was trained to write after `prompt`, without the EOS token."""
    digits = prompt.removesuffix("=")
    if len(digits) != DIGITS or prompt == digits or not (digits.isascii() and digits.isdigit()):
        raise ValueError(f'a prompt is {DIGITS} digits and "=", got {prompt!r}')
    counts = "".join(f"{digit}{digits.count(digit)}" for digit in "0123456789")
    return f"{counts}#{''.join(sorted(digits))}"


def is_correct(prompt: str, completion: str) -> bool:
    """Whether `completion`, decoded without special tokens, is exactly right: every count, then the sorted digits."""
    return completion == correct_completion(prompt)
