"""Computes the loss at the prefixes of a micro-batch from what an engine says of the teacher, without a teacher.

An engine gives, at each prefix, the teacher's log-probabilities of the student's k most probable tokens, and that of
all other tokens together. These are the k + 1 outcomes of `reverse_kl` with `top_k`, whose student side is computed
here from the student itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    tempered,
)
from ..metrics.prefix_means import PrefixMeans
from ..objective import LossTerms, Objective
from ..teachers.top_divergence import reverse_kl_of_top, with_missing


def prefix_loss_of_top(
    student_hidden: Tensor,
    student_head: LMHead,
    valid: Tensor,
    completion_ids: Tensor,
    top: TeacherTop,
    teacher_log_prob: Tensor | None,
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
        teacher_log_prob: [B, C] nats, log pi_T of the completions' tokens. None: that of a token which is not among
            the top ones has its share of the rest, as `trbext.TopK` says.
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
        with torch.no_grad():
            log_prob = _log_prob_of(token, logits, TeacherTop(*of_teacher), temperature)
        minimized = cross_entropy(logits, token, temperature=temperature) if supervised else kl
        return kl, student_entropy, minimized, log_prob

    valid = valid.to(device)
    hidden, tokens, *of_teacher = (tensor.to(device)[valid] for tensor in (student_hidden, completion_ids, *top))
    tokens = emitted_as_stop(tokens, alignment)
    found = in_chunks(terms, student_head.weight.shape[0], hidden, tokens, *of_teacher)
    kl, student_entropy, minimized, log_prob = found
    if teacher_log_prob is not None:
        log_prob = teacher_log_prob.to(device)[valid]
    teacher = TeacherTerms(log_prob, torch.full_like(log_prob, torch.nan))
    sums = PrefixMeans.sums(kl.sum(), valid.sum(), teacher)
    return LossTerms(minimized.sum() / items, student_entropy.sum().detach(), sums, log_prob)


def _log_prob_of(token: Tensor, logits: Tensor, top: TeacherTop, temperature: float) -> Tensor:
    """Returns log pi_T [n] of tokens [n], of which those outside the top ones have the student's share of the rest."""
    student, ids = with_missing(tempered(logits.detach(), temperature), top.ids.long())
    rest = student.scatter(-1, ids, -torch.inf).logsumexp(-1)
    outside = top.rest_log_prob + student.gather(-1, token[:, None])[:, 0] - rest
    listed = ids == token[:, None]
    inside = F.pad(top.log_prob.masked_fill(~listed, -torch.inf), (0, 1), value=-torch.inf).amax(-1)  # k may be 0
    return torch.where(listed.any(-1), inside, outside).float()
