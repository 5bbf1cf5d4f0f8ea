"""Lists the completions of an evaluation, each with a seed of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

SEED_BITS = 53  # JSON's numbers hold so many without rounding


@dataclass(frozen=True)
class Task:
    """One completion that is to be drawn."""

    benchmark: str
    prompt: int  # row of the benchmark's prompts, counted from 0
    sample: int  # of that prompt, counted from 0
    ids: tuple[int, ...]  # token ids of the prompt
    seed: int
    max_new_tokens: int


@dataclass(frozen=True)
class Completion:
    """What was drawn for a task."""

    text: str  # without special tokens
    tokens: int  # drawn, the stop token included
    finished: bool  # by a stop token, and not by the length limit


Write = Callable[[Task, Completion], None]


class Decoder(Protocol):
    """Draws completions at temperature 1 from the whole softmax of one model."""

    name: str  # of the way of decoding; completions of two ways do not go into one file
    in_flight: int  # completions drawn at a time

    def draw(self, tasks: Sequence[Task], missing: Callable[[Task], bool], write: Write) -> Iterator[Task]:
        """Draws the completions that are missing.

        Args:
            tasks: All of an evaluation.
            missing: Whether the completion of a task has still to be drawn.
            write: Is called once for each missing task, as soon as its completion is drawn, from any thread.

        Yields:
            The tasks whose completions were written.
        """


def completion_seed(seed: int, prompt: object, row: int, sample: int) -> int:
    """Returns the seed of one completion: it depends on nothing but the arguments.

    Args:
        seed: Of the evaluation.
        prompt: Text or messages.
        row: Of the prompt, by which equal prompts get unequal seeds.
        sample: Of the prompt.
    """
    named = json.dumps([seed, prompt, row, sample], sort_keys=True, ensure_ascii=False, default=str)
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:8], "big") >> (64 - SEED_BITS)


def tasks_of(
    benchmark: str,
    prompts: Sequence[object],
    ids: Sequence[Sequence[int]],
    *,
    samples: int,
    seed: int,
    max_new_tokens: int,
) -> list[Task]:
    """Lists `samples` completions of each prompt.

    Args:
        benchmark: Its name.
        prompts: Text or messages.
        ids: Token ids of each prompt.
        samples: Completions of a prompt.
        seed: Of the evaluation.
        max_new_tokens: Of a completion.
    """
    found = []
    for row, (prompt, encoded) in enumerate(zip(prompts, ids, strict=True)):
        shared: dict[str, Any] = {"ids": tuple(encoded), "max_new_tokens": max_new_tokens}
        for sample in range(samples):
            found.append(Task(benchmark, row, sample, seed=completion_seed(seed, prompt, row, sample), **shared))
    return found
