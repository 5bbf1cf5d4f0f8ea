"""Computes the reverse KL from student to teacher at each position of verl's packed sequences."""

from __future__ import annotations

from torch import Tensor

from ..training.losses import in_chunks
from ..training.top_divergence import reverse_kl_of_top
from ..vllm.sampler.teacher_top import TeacherTop
from ..vocab import Alignment
from .teacher_rows import top_of_rows


def packed_reverse_kl(
    student_logits: Tensor, teacher_ids: Tensor, teacher_log_probs: Tensor, alignment: Alignment
) -> dict[str, Tensor]:
    """Computes the reverse KL over k + 1 outcomes, as `trbext.reverse_kl` with `top_k` does.

    Args:
        student_logits: [N, V], already divided by the temperature, any float dtype. The only argument with a gradient.
        teacher_ids: [N, k + 1] int32, rows of `trbext.verl.teacher_rows`.
        teacher_log_probs: [N, k + 1] float32, nats.
        alignment: The vocabulary that both models share.

    Returns:
        By verl's names, [N] float32 each: `distillation_losses` in nats, and without a gradient `student_mass` and
        `teacher_mass`, the probability of the k tokens.
    """

    def terms(logits: Tensor, ids: Tensor, log_probs: Tensor) -> tuple[Tensor, ...]:
        top = top_of_rows(ids, log_probs)
        aligned = alignment.canonical(logits)
        return reverse_kl_of_top(aligned, top), _mass(aligned.detach(), top)

    kl, student_mass = in_chunks(terms, student_logits.shape[-1], student_logits, teacher_ids, teacher_log_probs)
    teacher_mass = teacher_log_probs[:, :-1].exp().sum(-1)
    return {"distillation_losses": kl, "student_mass": student_mass, "teacher_mass": teacher_mass}


def _mass(logits: Tensor, top: TeacherTop) -> Tensor:
    """Returns the student's probability [n] of the top tokens."""
    precise = logits.float()
    chosen = precise.gather(-1, top.ids.long().clamp(min=0)) - precise.logsumexp(-1, keepdim=True)
    return chosen.exp().masked_fill(top.ids < 0, 0.0).sum(-1)
