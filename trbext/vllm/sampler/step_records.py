"""Keeps what verify computed for each token of an engine's rollouts until the client takes it, by rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..requests import NO_KEY
from .row_layout import Flags, Indices
from .teacher_top import TeacherTop


@dataclass(frozen=True)
class Step:
    """The results of one call of verify over B requests with N drafts, still on the device."""

    keys: Indices  # [B] the rollout of each request, or NO_KEY
    counts: Indices  # [B] drafts of each request
    usable: Flags  # [B] whether its tokens came from verify
    start: Tensor  # [B] place of its first token in the output of the request, in which the held-out token is at 0
    tokens: Tensor  # [B, width]
    emitted: Tensor  # [B]
    accepted: Tensor  # [B]
    log_probs: Tensor  # [B, width, 3] of student, teacher, mu
    beta: Tensor  # [N]
    kl: Tensor  # [N]
    top: TeacherTop | None  # [N] if it was asked for


class StepRecords:
    """Tokens of the recorded rollouts, and the places at which a rollout has to be cut.

    It takes 28 bytes for each draft, and `TeacherTop`'s if that is kept.
    """

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._teacher: list[tuple[Indices, Tensor]] = []

    def add(self, step: Step) -> None:
        """Keeps the results of a step. They are not copied, so nothing may write to them."""
        if (step.keys != NO_KEY).any():
            self._steps.append(step)

    def add_teacher_tokens(self, keys: Indices, places: Tensor) -> None:
        """Keeps the places [m] of tokens that the teacher drew, in the output of the requests of `keys` [m]."""
        if (keys != NO_KEY).any():
            self._teacher.append((keys, places))

    def take(self) -> dict[str, NDArray[Any]]:
        """What was recorded since the last call, as arrays of one entry per token. Waits for the device.

        Returns:
            key, index (place in the output of the request), token, student_log_prob, teacher_log_prob, log_prob (under
            mu), beta and kl of M tokens; with it top_ids [M, K], top_log_prob [M, K] and rest_log_prob [M] if they were
            asked for; teacher_key and teacher_index of the tokens that the teacher drew; fault_key and fault_index of
            the tokens whose row was at fault.
        """
        steps, self._steps = self._steps, []
        teacher, self._teacher = self._teacher, []
        answer: dict[str, NDArray[Any]] = {
            "teacher_key": _joined([keys for keys, _ in teacher], np.int64),
            "teacher_index": _host([places for _, places in teacher], np.int64),
        }
        # 1. One entry per request of each step: how many tokens it wrote, and where its rows begin.
        keys, counts = (_joined([getattr(step, name) for step in steps], np.int64) for name in ("keys", "counts"))
        usable = _joined([step.usable for step in steps], np.bool_)
        emitted = _host([step.emitted for step in steps], np.int64)
        accepted = _host([step.accepted for step in steps], np.int64)
        start = _host([step.start for step in steps], np.int64)
        at_fault = usable & (emitted < 0) & (keys != NO_KEY)
        answer["fault_key"], answer["fault_index"] = keys[at_fault], (start + accepted)[at_fault]
        written = np.where(usable & (keys != NO_KEY), np.where(emitted < 0, accepted, emitted), 0)
        first_row = np.cumsum(counts) - counts
        widths = _joined([np.full(len(step.keys), step.tokens.shape[1]) for step in steps], np.int64)
        first_slot = np.cumsum(widths) - widths
        # 2. Make one entry per token.
        place = np.arange(written.sum()) - np.repeat(np.cumsum(written) - written, written)
        slot, row = (np.repeat(first, written) + place for first in (first_slot, first_row))
        answer["key"] = np.repeat(keys, written)
        answer["index"] = np.repeat(start, written) + place
        answer["token"] = _host([step.tokens.flatten() for step in steps], np.int64)[slot]
        log_probs = _host([step.log_probs.flatten() for step in steps], np.float32).reshape(-1, 3)[slot]
        for column, name in enumerate(("student_log_prob", "teacher_log_prob", "log_prob")):
            answer[name] = np.ascontiguousarray(log_probs[:, column])
        answer["beta"], answer["kl"] = (
            _host([getattr(step, name) for step in steps], np.float32)[row] for name in ("beta", "kl")
        )
        if steps and steps[0].top is not None:
            tops = [step.top for step in steps if step.top is not None]
            k = tops[0].ids.shape[-1]
            answer["top_ids"] = _host([top.ids.flatten() for top in tops], np.int32).reshape(-1, k)[row]
            answer["top_log_prob"] = _host([top.log_prob.flatten() for top in tops], np.float32).reshape(-1, k)[row]
            answer["rest_log_prob"] = _host([top.rest_log_prob for top in tops], np.float32)[row]
        return answer


def _joined(arrays: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *arrays]).astype(dtype)


def _host(tensors: list[Tensor], dtype: Any) -> NDArray[Any]:
    return np.empty(0, dtype) if not tensors else torch.cat(tensors).cpu().numpy().astype(dtype)
