"""Draws the completions of an evaluation from the engine of a run, which has the student's present weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...evaluation.tasks import Completion, Task, Write
from .rollouts import RolloutEngines


class StudentDecoder:
    """The student in the engine that the run's rollouts of this step come from: at epsilon = 0 if it has the teacher.

    All completions are asked at once. The engine has one seed for them.

    Args:
        engines: Of the run.
        tokenizer: The student's.
        blended: Whether the engine holds the teacher (`RolloutEngines.needs_teacher`).
        step: Optimizer step.
        seed: Of this process.
    """

    name = "engine"

    def __init__(self, engines: RolloutEngines, tokenizer: Any, *, blended: bool, step: int, seed: int) -> None:
        self._engines, self._tokenizer = engines, tokenizer
        self._place: dict[str, Any] = {"blended": blended, "step": step, "seed": seed}
        self.in_flight = engines.models.rollouts

    def draw(self, tasks: Sequence[Task], missing: Callable[[Task], bool], write: Write) -> Iterator[Task]:
        """See `Decoder`. Every process calls it, also one without tasks: it has to send its part of the weights."""
        todo = [task for task in tasks if missing(task)]
        stop = self._engines.alignment.stop
        turn = self._engines.draw(
            [list(task.ids) for task in todo] or [[stop, stop]],
            [0.0] * max(1, len(todo)),
            max_new_tokens=max((task.max_new_tokens for task in todo), default=1),
            temperature=1.0,
            **self._place,
        )
        for task, ids in zip(todo, turn.completion_ids, strict=False):
            text = str(self._tokenizer.decode(ids, skip_special_tokens=True))
            write(task, Completion(text, len(ids), ids[-1:] == [stop]))
            yield task
