"""Counts the cost of a training run: seconds without evaluation, and positions that went through each model.

A policy that needs the teacher at every token costs more than one that does not, so runs are compared at equal cost as
well as at equal steps. Positions are counted as they enter the backbone of a model. Everything that decodes or scores
is counted, with prefill and padding, because the model computes all of it. Completions of vLLM do not enter a backbone
of the trainer; `add_tokens` counts them. The backward pass is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ...models.cached_model import unwrap
from ...models.next_token import is_transformers
from ...teachers import SelfTeacher
from ..checkpoints.callback_state import saved_attributes


class ComputeCount(TrainerCallback, ExportableState):
    """The running totals of a run's cost, kept in its checkpoints, from which a resumed run continues.

    Args:
        student: Its backbone is observed; may be inside DDP, DeepSpeed or PEFT.
        teachers: Likewise; none if only an engine has the teacher, and the parts of a mixture. What a model that is not
            from transformers computes is not known, so it is not counted.
    """

    def __init__(self, student: nn.Module, teachers: Sequence[Any]) -> None:
        self._seconds = 0.0
        self._tokens = {"student": 0, "teacher": 0}  # of all processes, to the last optimizer step
        self._step = {"student": 0, "teacher": 0}  # of this process, in the present step
        self._since: float | None = None  # when counting began; None while nothing is counted
        self._carried = (0.0, {"student": 0, "teacher": 0})  # what was spent before the first step
        selves = [teacher for teacher in teachers if isinstance(teacher, SelfTeacher)]
        self._watch(lambda: "teacher" if any(teacher.running for teacher in selves) else "student", student)
        for teacher in teachers:
            if is_transformers(teacher) and teacher not in selves:
                self._watch(lambda: "teacher", teacher)

    def _watch(self, name: Callable[[], str], model: Any) -> None:
        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._since is None:
                return
            ids = kwargs.get("input_ids", args[0] if args else None)
            # The positions are those of [B, T] ids or of [B, T, H] embeddings.
            self._step[name()] += (ids if ids is not None else kwargs["inputs_embeds"]).shape[:2].numel()

        # In a traced graph the counter would cause a new trace at every call.
        hook: Any = torch.compiler.disable(count)
        unwrap(model).base_model.register_forward_pre_hook(hook, with_kwargs=True)

    @property
    def started(self) -> bool:
        """Whether training has begun, so that there is something to report."""
        return self._since is not None or self._seconds > 0

    def carry(self, totals: Mapping[str, float]) -> None:
        """Counts from what `totals` says was spent before the run, as for a warmup of its student."""
        tokens = {name: int(totals[f"compute/{name}_tokens"]) for name in self._tokens}
        self._carried = float(totals["compute/seconds"]), tokens

    def add_tokens(self, *, student: int = 0, teacher: int = 0) -> None:
        """Counts positions that an engine computed."""
        if self._since is not None:
            self._step["student"] += student
            self._step["teacher"] += teacher

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Counts nothing inside, because evaluation is not part of a run's cost."""
        running = self._since is not None
        self._stop()
        try:
            yield
        finally:
            if running:
                self._since = time.perf_counter()

    def _stop(self) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def _elapsed(self) -> float:
        return self._seconds + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def totals(self) -> dict[str, float]:
        """Returns the cost up to the last optimizer step, by metric: seconds of this process, tokens of all
        processes."""
        return {
            "compute/seconds": self._elapsed(),
            "compute/student_tokens": self._tokens["student"],
            "compute/teacher_tokens": self._tokens["teacher"],
        }

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint. One process writes it for all, so it must not communicate with the
        others."""
        processes = PartialState().num_processes  # by which a resumed run knows whose random states to expect
        totals = {"seconds": self._elapsed(), "tokens": dict(self._tokens)}
        return {"args": {}, "attributes": {**totals, "processes": processes}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:  # a second call of `train` starts from 0
            self._seconds, self._tokens = self._carried[0], dict(self._carried[1])
        self._step = dict.fromkeys(self._step, 0)  # an earlier call may have ended inside a step
        saved = saved_attributes(self, state)
        if state.global_step > 0:
            self._seconds, self._tokens = saved["seconds"], dict(saved["tokens"])
        self._since = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        tokens = list(self._step.values())
        if PartialState().num_processes > 1:
            mine = torch.tensor(tokens, dtype=torch.int64, device=PartialState().device)
            tokens = reduce(mine, reduction="sum").tolist()
        for name, count in zip(self._step, tokens, strict=True):
            self._tokens[name] += count
            self._step[name] = 0

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stop()
