"""Draws tokens from only the teacher, for requests that have lost their drafts."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_from_teacher(logits: Tensor, rows: Tensor, temperature: Tensor, uniform: Tensor) -> Tensor:
    """One token at each of m rows. Nothing of the size of the vocabulary is allocated.

    They are direct rows of verify, of a student that is the teacher itself.

    Args:
        logits: [R, V], the teacher's, canonical.
        rows: [m] int32 or int64, the rows of `logits` that are meant.
        temperature: [m] float32.
        uniform: [m] float64 in [0, 1).

    Returns:
        [m] int64; 0 of a row at fault.
    """
    m, device = len(rows), logits.device
    tokens = torch.ops.trb.verify(
        logits,
        logits,
        torch.full((m,), -1, dtype=torch.int32, device=device),
        torch.arange(m + 1, dtype=torch.int32, device=device),
        torch.zeros(m, device=device),
        temperature,
        uniform,  # that of an acceptance, of which there is none
        uniform,
        student_rows=rows,
        teacher_rows=rows,
        width=1,
    )[0]
    token: Tensor = tokens[:, 0].clamp(min=0)
    return token
