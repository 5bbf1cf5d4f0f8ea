"""Repeats a stream of prompts (`datasets.IterableDataset`) without end, in an order of its own in each pass."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from datasets import IterableDataset


class EndlessPrompts(torch.utils.data.IterableDataset[dict[str, Any]]):
    """The rows of a stream as `ResumableSampler` would order them, pass after pass.

    It never ends, and the order of a pass is a function of its number. A resumed run therefore skips what it took and
    sees what the run that was not interrupted sees: transformers, which does not know how long a stream is, would skip
    all of it in the first pass. (A stream whose rows are not the same each time it is read cannot be resumed exactly.)

    Args:
        stream: Has a column "prompt".
        prompts: Different prompts of an optimizer step.
        rollouts_per_prompt: How often each comes within the step.
        repeats: How often the rows of a step come, one after another (for gradient accumulation).
        shuffle_seed: Of the buffered shuffle; None keeps the stream's order.

    Raises:
        ValueError: On iteration, the stream has fewer rows than an optimizer step needs.
    """

    def __init__(
        self,
        stream: IterableDataset,
        *,
        prompts: int,
        rollouts_per_prompt: int,
        repeats: int,
        shuffle_seed: int | None,
    ) -> None:
        self._stream = stream if shuffle_seed is None else stream.shuffle(seed=shuffle_seed)
        self._prompts, self._rollouts_per_prompt, self._repeats = prompts, rollouts_per_prompt, repeats

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            self._stream.set_epoch(number)
            rows = iter(self._stream)
            step = list(itertools.islice(rows, self._prompts))
            if len(step) < self._prompts:
                raise ValueError(
                    f"the stream of the train_dataset must have the {self._prompts} prompts of an optimizer step, "
                    f"got {len(step)}"
                )
            while len(step) == self._prompts:  # the rows that do not fill a step are left out of this pass
                for _ in range(self._repeats):
                    for row in step:
                        for _ in range(self._rollouts_per_prompt):
                            yield copy.deepcopy(row)
                step = list(itertools.islice(rows, self._prompts))
