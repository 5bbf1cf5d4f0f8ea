"""Draws the completions of an evaluation by our own decoder, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..data.encoding import left_padded
from ..rollout import lockstep
from ..vocab import Alignment, align
from .tasks import Completion, Task, Write

if TYPE_CHECKING:
    from collections.abc import Callable


class OwnDecoder:
    """Decodes completions with a model that is loaded in this process.

    The batches are the same whatever is missing, so that a continued evaluation draws what an uninterrupted one does
    to the last bit, if each completion has its own generator.

    Args:
        model: Of transformers.
        tokenizer: The model's.
        batch_size: Completions decoded at a time.
        temperature: Of the sampling.
        alignment: The model's with itself, or with a teacher; only its EOS ids and its width are read. None makes one.
        generator: Of all completions, in their order; None gives each completion the generator of its own seed.

    Raises:
        ValueError: `batch_size` is below 1.
    """

    name = "trbext"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int,
        temperature: float = 1.0,
        alignment: Alignment | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._model, self._tokenizer, self.in_flight = model, tokenizer, batch_size
        self._temperature = temperature
        self._alignment = alignment or align(model, model, tokenizer, tokenizer)
        self._generator = generator
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._alignment.stop

    def draw(self, tasks: Sequence[Task], missing: Callable[[Task], bool], write: Write) -> Iterator[Task]:
        """See `Decoder`."""
        for batch in self._batches(tasks):
            if not any(map(missing, batch)):
                continue
            ids, mask = left_padded([task.ids for task in batch], self._pad, self._model.device)
            rollout = lockstep(
                self._model,
                None,
                ids,
                mask,
                epsilon=0.0,
                max_new_tokens=batch[0].max_new_tokens,
                alignment=self._alignment,
                pad_token_id=self._pad,
                temperature=self._temperature,
                generator=self._generator or [torch.Generator().manual_seed(task.seed) for task in batch],
            )
            for row, task in enumerate(batch):
                kept = rollout.tokens[row][rollout.mask[row]]
                text = str(self._tokenizer.decode(kept, skip_special_tokens=True))
                if missing(task):
                    write(task, Completion(text, len(kept), bool(rollout.finished[row])))
                    yield task

    def _batches(self, tasks: Sequence[Task]) -> Iterator[list[Task]]:
        """Divides the tasks of each benchmark by itself, in their order."""
        batch: list[Task] = []
        for task in tasks:
            if batch and (len(batch) == self.in_flight or batch[0].benchmark != task.benchmark):
                yield batch
                batch = []
            batch.append(task)
        if batch:
            yield batch
