"""What a training run costs: wall-clock seconds without evaluation, and positions that went through each model.

A policy that asks the teacher at every decoding step does not spend what one that leaves it alone spends, so runs are
compared at equal cost as well as at equal steps. Positions are counted where they enter a model's backbone: whatever
decodes or scores there is counted, prefill and padding included, as this is what the model computes. Completions from
vLLM pass no backbone of ours; `add_student_tokens` takes those. The backward pass is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..models.cached_model import unwrap
from .callback_state import saved_attributes


class ComputeCount(TrainerCallback, ExportableState):
    """Running totals of a run's cost, kept in its checkpoints: a resumed run goes on from those of its checkpoint."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        self._seconds = 0.0
        self._tokens = {"student": 0, "teacher": 0}  # of all processes, to the last optimizer step
        self._step = {"student": 0, "teacher": 0}  # of this process, in the step under way
        self._since: float | None = None  # when counting began; None while nothing is counted
        self._watch("student", student)
        self._watch("teacher", teacher)

    def _watch(self, name: str, model: nn.Module) -> None:
        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._since is None:
                return
            ids = kwargs.get("input_ids", args[0] if args else None)
            # shape[:2] of [B, T, H] embeddings is what numel() of [B, T] ids is
            self._step[name] += (ids if ids is not None else kwargs["inputs_embeds"]).shape[:2].numel()

        # In a traced graph the counter would make it anew at every call.
        hook: Any = torch.compiler.disable(count)
        unwrap(model).base_model.register_forward_pre_hook(hook, with_kwargs=True)

    @property
    def started(self) -> bool:
        """Whether training has begun, so that there is something to report."""
        return self._since is not None or self._seconds > 0

    def add_student_tokens(self, tokens: int) -> None:
        """Count positions that the student computed elsewhere."""
        self._step["student"] += tokens if self._since is not None else 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing inside is counted: evaluation is not part of a run's cost."""
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
        """Cumulative cost to the last optimizer step: seconds of this process, tokens of all."""
        return {
            "compute/seconds": self._elapsed(),
            "compute/student_tokens": self._tokens["student"],
            "compute/teacher_tokens": self._tokens["teacher"],
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds. One process writes it for all, so it may not ask the others anything."""
        return {"args": {}, "attributes": {"seconds": self._elapsed(), "tokens": dict(self._tokens)}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:  # `train` called again begins anew
            self._seconds, self._tokens = 0.0, {"student": 0, "teacher": 0}
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
