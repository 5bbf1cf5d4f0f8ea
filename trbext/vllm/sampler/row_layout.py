"""Works out which rows of an engine's step belong together: pure arithmetic on the host, without the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class RowLayout:
    """The N drafted rows of a step's B requests."""

    counts: Indices  # [B] drafts of each request
    usable: Flags  # [B] whether the request has drafts, and the student's probabilities of them are at hand
    student_rows: Indices | None  # [N] row of the student's flattened probabilities, -1 if missing; None is 0 .. N - 1

    @classmethod
    def of(
        cls, counts: Sequence[int], requests: Sequence[str], owners: Sequence[str] | None, draft_length: int
    ) -> RowLayout:
        """The layout of a step.

        Args:
            counts: [B] drafts of each request.
            requests: [B] their ids, in the order of the batch.
            owners: [B'] the ids of the requests that the student's probabilities [B', draft_length, V] belong to, in
                their order; None if the engine has none.
            draft_length: The second dimension of those probabilities.
        """
        drafts = np.asarray(counts, dtype=np.int64)
        rows = int(drafts.sum())
        if owners is None:
            return cls(drafts, np.zeros(len(drafts), bool), np.full(rows, -1))
        if rows == len(drafts) * draft_length and list(owners) == list(requests):
            return cls(drafts, np.ones(len(drafts), bool), None)
        slot = {request: index for index, request in enumerate(owners)}
        slots = np.array([slot.get(request, -1) for request in requests], dtype=np.int64)
        usable = (drafts > 0) & (slots >= 0)
        starts = np.cumsum(drafts) - drafts
        index = np.repeat(slots * draft_length - starts, drafts) + np.arange(rows)
        return cls(drafts, usable, np.where(np.repeat(usable, drafts), index, -1))

    @property
    def request_of_row(self) -> Indices:
        """[N] the request of each row."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """`array` as a tensor on `device`. The host does not wait: it copies from pinned memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
