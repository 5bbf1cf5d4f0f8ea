"""Takes from an engine's step what a top-k loss needs of the teacher, so that no trainer has to load it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TeacherTop(NamedTuple):
    """The teacher's distribution at each of n prefixes, over the student's K most probable tokens and all others.

    Log-probabilities are natural logarithms at the sampling temperature, over the vocabulary that both models share.
    A prefix takes 8 K + 4 bytes.
    """

    ids: Tensor  # [..., K] int32, most probable first
    log_prob: Tensor  # [..., K] float32, log pi_T of these tokens
    rest_log_prob: Tensor  # [...] float32, log pi_T of all other tokens together; -inf if they have no mass


def teacher_top(
    logits: Tensor, rows: Tensor, student_probs: Tensor, student_rows: Tensor | None, temperature: Tensor, k: int
) -> TeacherTop:
    """The teacher's distribution at n rows. Reads the teacher's logits once, and allocates nothing of size [n, V].

    Args:
        logits: [R, V_T], the teacher's, canonical. The k tokens are masked while the rest is summed, then restored.
        rows: [n] int64, the rows of `logits` that are meant, all different.
        student_probs: [R_S, V], V <= V_T, the student's probabilities over the common vocabulary.
        student_rows: [n] int64, their rows; -1 gives the numbers of row 0, which mean nothing. None is 0 .. n - 1.
        temperature: [n] float32.
        k: Tokens, at most V.
    """
    n = rows.shape[0]
    ids = student_probs.topk(k).indices
    ids = ids[:n] if student_rows is None else ids[student_rows.clamp(min=0)]
    at = (rows[:, None], ids)
    kept = logits[at]
    logits[at] = -torch.inf
    # A direct row at epsilon = 0 draws one of the other tokens and reports its log-probability among them, which gives
    # the logarithm of their sum without an [n, V] tensor.
    half = torch.full((n,), 0.5, dtype=torch.float64, device=logits.device)
    drawn = torch.ops.trb.verify(
        logits,
        logits,
        torch.full((n,), -1, dtype=torch.int32, device=logits.device),
        torch.arange(n + 1, dtype=torch.int32, device=logits.device),
        torch.zeros(n, device=logits.device),
        temperature,
        half,
        half,
        student_rows=rows,
        teacher_rows=rows,
        width=1,
        vocab=student_probs.shape[-1],
        log_probs=True,
    )
    token, log_prob = drawn[0][:, 0], drawn[5][:, 0, 0].double()
    scale = temperature.double()
    rest = logits[rows, token.clamp(min=0)].double() / scale - log_prob
    rest = torch.where(token >= 0, rest, -torch.inf)  # -1: every other token is masked
    logits[at] = kept
    top = kept.double() / scale[:, None]
    total = torch.logaddexp(top.logsumexp(-1), rest)
    return TeacherTop(ids.int(), (top - total[:, None]).float(), (rest - total).float())
