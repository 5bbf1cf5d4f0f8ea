"""Makes prompts of counting sort as a reasoning task: a completion first counts eight digits, then sorts them.

    prompt      50311758=
    completion  01122031405260718190#01135578      no 0 but one, two 1s, no 2, ...: read it as 01 12 20 31 40 52 ...

The completion is 30 tokens with its EOS. After an early wrong count, the teacher has seldom seen any later prefix: this
is what on-policy distillation meets in mathematics. Every function depends on nothing but its arguments.
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
    """Draws different prompts such as "50311758=".

    Args:
        n: Number of prompts.
        seed: Equal arguments give equal prompts.
        split: No prompt is in both splits.

    Returns:
        The prompts, in the order of drawing.

    Raises:
        ValueError: There is no such split, or it has fewer prompts.
    """
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
    """Returns `prompts` as rows of a dataset in TRL's plain-text format: [{"prompt": "50311758="}, ...]."""
    return [{"prompt": prompt} for prompt in prompts(n, seed, split)]


def correct_completion(prompt: str) -> str:
    """Returns what the teacher was trained to write after `prompt`, without the EOS token."""
    digits = prompt.removesuffix("=")
    if len(digits) != DIGITS or prompt == digits or not (digits.isascii() and digits.isdigit()):
        raise ValueError(f'a prompt is {DIGITS} digits and "=", got {prompt!r}')
    counts = "".join(f"{digit}{digits.count(digit)}" for digit in "0123456789")
    return f"{counts}#{''.join(sorted(digits))}"


def is_correct(prompt: str, completion: str) -> bool:
    """Returns whether `completion`, decoded without special tokens, is right: every count, then the sorted digits."""
    return completion == correct_completion(prompt)
