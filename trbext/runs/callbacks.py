"""Writes metrics.jsonl, shows a progress bar and stops cleanly on Ctrl-C, as callbacks of a training run."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..training.metrics.metric_table import figures
from .folder import RunFolder


class MetricsFile(TrainerCallback):
    """Appends a JSON object per log, with its optimizer step, to metrics.jsonl; NaN and inf are written as null."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.folder.forget_metrics_after(state.global_step if state.global_step > 0 else -1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            self.folder.append_metrics({"step": state.global_step, **logs})


class ProgressDisplay(TrainerCallback):
    """Shows a progress bar with the figures of the step, or prints a line per log if the output is no terminal."""

    def __init__(self, label: str, console: Console | None = None) -> None:
        self.label = label
        self.console = console or Console()
        self._progress: Progress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),  # the name of a folder
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
        )
        self._task = self._progress.add_task(self.label, total=state.max_steps, completed=state.global_step, figures="")
        self._progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        line = figures(logs or {})
        if not line or not state.is_world_process_zero:
            return
        if self._progress is None:
            self.console.print(
                f"{self.label}  step {state.global_step}/{state.max_steps}  {line}",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )
        elif "eval_loss" in (logs or {}):
            self._progress.console.print(
                f"{self.label} step {state.global_step}: {line}", highlight=False, markup=False
            )
        else:
            self._progress.update(self._task, figures=line)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class StopOnSignal(TrainerCallback):
    """Ends the run after the current optimizer step, with a checkpoint, on Ctrl-C or SIGTERM; at once on a second one.

    Afterwards `stopped` says whether it did, and `requested` whether there was a signal, which in the last step stops
    nothing. All processes stop at the same step, or one would wait for the others.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.stopped = False
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._before = {number: signal.signal(number, self._request) for number in self.SIGNALS}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._of_any_process() and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.requested = self._of_any_process()

    def _of_any_process(self) -> bool:
        if PartialState().num_processes == 1:
            return self.requested
        flag = torch.tensor(float(self.requested), device=PartialState().device)
        return bool(reduce(flag, reduction="sum") > 0)
