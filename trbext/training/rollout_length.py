"""Limits the rollouts of each optimizer step: all the same, by a fixed plan, or by progress (FastOPD).

The adaptive rule follows Adaptive FastOPD (arXiv 2607.29494): a limit H grows when learning near the end of the
rollouts has stalled, and enough rollouts reach H. With s_k the mean of log pi_T over the tokens of step k in the last
quarter of H, entry the mean of s over the first window of w steps at this H, now and before those of the last window
and of the one before it, all without steps that have no such token, and the first window from the first step with one,

    stalled:  now - before <= plateau (now - entry), or nothing was gained since the entry
    used:     in the last window a share of at least `use` of the rollouts has H tokens

are asked after each step from the third window on. If both hold, H becomes min(growth H, max_completion_length).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from .checkpoints.callback_state import saved_attributes

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .config import TRBConfig

BOUNDARY = 0.25  # the share of a rollout's greatest length that is near its end


class RolloutLength(TrainerCallback, ExportableState):
    """The longest rollouts of a run over its optimizer steps, in tokens.

    What the adaptive rule has seen is part of every checkpoint, so a resumed run repeats it exactly.

    Args:
        args: Of the run.
    """

    def __init__(self, args: TRBConfig) -> None:
        assert args.max_completion_length is not None
        self._args, self._longest = args, int(args.max_completion_length)
        self._plan = args.lengths_by_step
        self._start()

    def _start(self) -> None:
        self._length = self._args.rollout_length_start or self._longest
        # Of each step at this length, from the first with a token near the end: s and the share of full rollouts.
        self._seen: list[tuple[float, float]] = []
        self._sums = [0.0] * 4  # of the present step, see `add`

    @property
    def is_limited(self) -> bool:
        """Whether rollouts may be shorter than `max_completion_length`."""
        return bool(self._plan) or self._args.rollout_length_start is not None

    @property
    def adapts(self) -> bool:
        """Whether the rule still has something to decide."""
        return self._args.rollout_length_start is not None and self._length < self._longest

    def at(self, step: int) -> int:
        """Returns the longest rollout of optimizer step `step`, the present one."""
        if self._plan:
            return self._plan[max(begin for begin in self._plan if begin <= step)]
        return self._length

    def add(self, teacher_log_prob: Tensor, valid: Tensor, accelerator: Accelerator) -> None:
        """Takes a micro-batch into account. Every process calls it.

        Args:
            teacher_log_prob: [N] nats, log pi_T of the tokens; -inf of a token that the teacher excludes.
            valid: [B, C] bool, which tokens these are, in order.
            accelerator: Of the run.
        """
        near = (torch.arange(valid.shape[1], device=valid.device) >= math.floor((1 - BOUNDARY) * self._length)) & valid
        of_end = teacher_log_prob.float()[near[valid]]
        of_end = of_end[of_end > -torch.inf]
        full = valid[:, self._length - 1 : self._length].sum()  # no column if all rollouts are shorter
        counts = of_end.new_tensor([len(of_end), int(full), len(valid)])
        total = accelerator.reduce(torch.cat([of_end.sum()[None], counts]), reduction="sum").tolist()
        self._sums = [before + more for before, more in zip(self._sums, total, strict=True)]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        log_prob, tokens, full, rows = self._sums
        self._sums = [0.0] * 4
        if not self.adapts or rows == 0:
            return
        if tokens or self._seen:
            self._seen.append((log_prob / tokens if tokens else math.nan, full / rows))
        if self._has_stalled():
            self._length = min(math.ceil(self._args.rollout_length_growth * self._length), self._longest)
            self._seen = []

    def _has_stalled(self) -> bool:
        window = self._args.rollout_length_window
        if len(self._seen) < 3 * window:
            return False
        signals = torch.tensor([signal for signal, _ in self._seen], dtype=torch.float64)
        entry, before, now = (
            float(part.nanmean()) for part in (signals[:window], signals[-2 * window : -window], signals[-window:])
        )
        used = sum(share for _, share in self._seen[-window:]) / window
        # Comparisons with NaN, of windows without a token near the end, are False: such rollouts are short enough.
        stalled = now - before <= self._args.rollout_length_plateau * (now - entry) or now <= entry
        return stalled and used >= self._args.rollout_length_use

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {"args": {}, "attributes": {"length": self._length, "seen": [list(step) for step in self._seen]}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:  # a second call of `train` starts from 0
            self._start()
        self._sums = [0.0] * 4  # an earlier call may have ended inside a step
        saved = saved_attributes(self, state)
        if state.global_step > 0:
            self._length, self._seen = int(saved["length"]), [(signal, share) for signal, share in saved["seen"]]
