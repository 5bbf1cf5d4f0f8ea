"""Computes the loss at the prefixes of a micro-batch from what an engine says of the teacher, without a teacher.

An engine gives, at each prefix, the teacher's log-probabilities of the student's k most probable tokens, and that of
all other tokens together. These are the k + 1 outcomes of `reverse_kl` with `top_k`, whose student side is computed
here from the student itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...models.lm_head import LMHead
from ...vllm.sampler.teacher_top import TeacherTop
from ...vocab import Alignment
from ..losses import (
    TeacherTerms,
    cross_entropy,
    emitted_as_stop,
    entropy,
    in_chunks,
    kl_of_logits,
    tempered,
    top_and_rest,
)
from ..metrics.prefix_means import PrefixMeans
from ..objective import LossTerms, Objective


def reverse_kl_of_top(student_logits: Tensor, top: TeacherTop, *, temperature: float = 1.0) -> Tensor:
    """Returns the reverse KL over k + 1 outcomes in nats at each prefix, differentiable in the student.

    It equals `reverse_kl(student_logits, teacher_logits, top_k=k)` if `top` is of the same teacher and its ids are the
    student's k most probable tokens.

    Args:
        student_logits: `[..., V]`, aligned, any float dtype.
        top: `[..., k]` and `[...]`, of the teacher at this temperature.
        temperature: Divides the student's logits.

    Returns:
        `[...]` nats.
    """
    student = top_and_rest(tempered(student_logits, temperature), top.ids.long())
    teacher = torch.cat([top.log_prob, top.rest_log_prob[..., None]], -1).to(student.dtype)
    return kl_of_logits(student, teacher)


def prefix_loss_of_top(
    student_hidden: Tensor,
    student_head: LMHead,
    valid: Tensor,
    completion_ids: Tensor,
    top: TeacherTop,
    teacher_log_prob: Tensor,
    *,
    objective: Objective,
    items: Tensor | int,
    alignment: Alignment,
    temperature: float,
) -> LossTerms:
    """Returns the loss over the prefixes of a micro-batch, as `prefix_loss` computes it with a teacher.

    Args:
        student_hidden: [B, C, H], the student's last hidden states at the prefix of each token of the completions.
        student_head: Turns them into logits.
        valid: [B, C] bool, the prefixes that count.
        completion_ids: [B, C] int64.
        top: [B, C, k] and [B, C], of the engine.
        teacher_log_prob: [B, C] nats, log pi_T of the completions' tokens.
        objective: Of kind "top_k" or "cross_entropy".
        items: The sum over prefixes is divided by it.
        alignment: The vocabulary that both models share.
        temperature: Of the run.

    Returns:
        The loss, and sums without a gradient. The teacher's entropy is not known, and NaN in them.
    """
    device = student_head.weight.device
    supervised = objective.kind == "cross_entropy"

    def terms(hidden: Tensor, token: Tensor, *of_teacher: Tensor) -> tuple[Tensor, ...]:
        logits = alignment.canonical(student_head(hidden), temperature)
        with torch.no_grad():
            student_entropy = entropy(logits, temperature)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not supervised):
            kl = reverse_kl_of_top(logits, TeacherTop(*of_teacher), temperature=temperature)
        return kl, student_entropy, cross_entropy(logits, token, temperature=temperature) if supervised else kl

    valid = valid.to(device)
    rows = [tensor.to(device)[valid] for tensor in (student_hidden, completion_ids, *top, teacher_log_prob)]
    hidden, tokens, *of_teacher, log_prob = rows
    tokens = emitted_as_stop(tokens, alignment)
    kl, student_entropy, minimized = in_chunks(terms, student_head.weight.shape[0], hidden, tokens, *of_teacher)
    teacher = TeacherTerms(log_prob, torch.full_like(log_prob, torch.nan))
    sums = PrefixMeans.sums(kl.sum(), valid.sum(), teacher)
    return LossTerms(minimized.sum() / items, student_entropy.sum().detach(), sums)
