"""Defines the order in which a run visits its prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from trl.trainer.utils import RepeatSampler


class ResumableSampler(RepeatSampler):  # type: ignore[misc]  # TRL is untyped
    """TRL's sampler with each epoch's order a function of the epoch.

    TRL's own draws one order after another from a generator that a checkpoint does not hold: a run resumed in its
    second epoch would see the first epoch's order again.
    """

    def __init__(self, *, epoch: Callable[[], int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + self.epoch())
        yield from super().__iter__()


def prompts_of_a_step(rollouts: int, rollouts_per_prompt: int, available: int) -> int:
    """Returns the number of different prompts in an optimizer step of `rollouts`.

    Raises:
        ValueError: The number is not whole, or more than there are `available`.
    """
    if rollouts % rollouts_per_prompt != 0:
        raise ValueError(
            f"rollouts_per_prompt must divide the {rollouts} rollouts of an optimizer step, got {rollouts_per_prompt}"
        )
    prompts = rollouts // rollouts_per_prompt
    if available < prompts:
        raise ValueError(f"the train_dataset must have the {prompts} prompts of an optimizer step, got {available}")
    return prompts
