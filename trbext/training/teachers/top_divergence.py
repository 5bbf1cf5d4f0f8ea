"""Computes the reverse KL from what is known of a teacher at a prefix: k of its log-probabilities, and their rest."""

from __future__ import annotations

import torch
from torch import Tensor

from ...vllm.sampler.teacher_top import TeacherTop
from ..losses import kl_of_logits, tempered, top_and_rest


def reverse_kl_of_top(student_logits: Tensor, top: TeacherTop, *, temperature: float = 1.0) -> Tensor:
    """Returns the reverse KL over k + 1 outcomes in nats at each prefix, differentiable in the student.

    It equals `reverse_kl(student_logits, teacher_logits, top_k=k)` if `top` is of the same teacher and its ids are the
    student's k most probable tokens.

    Args:
        student_logits: `[..., V]`, aligned, any float dtype.
        top: `[..., k]` and `[...]`, of the teacher at this temperature; an id of -1 is no token.
        temperature: Divides the student's logits.

    Returns:
        `[...]` nats.
    """
    student = top_and_rest(*with_missing(tempered(student_logits, temperature), top.ids.long()))
    teacher = torch.cat([top.log_prob, top.rest_log_prob[..., None]], -1).to(student.dtype)
    return kl_of_logits(student, teacher)


def with_missing(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the logits with one more token of probability 0, and ids that name it in the place of -1."""
    return torch.nn.functional.pad(logits, (0, 1), value=-torch.inf), ids.masked_fill(ids < 0, logits.shape[-1])
