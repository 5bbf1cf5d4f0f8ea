"""Computes the loss at the prefixes of one micro-batch, from the hidden states of both models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from trl.trainer.distillation_trainer import _chunked_divergence_loss
from trl.trainer.utils import maybe_gather_lm_head_ctx

from ..models.lm_head import Head, LMHead
from ..vocab import Alignment
from .losses import (
    PrefixTerms,
    chunked_reverse_kl,
    cross_entropy,
    reverse_kl,
    sampled_reverse_kl,
    teacher_terms,
    veto_target,
)
from .metrics.prefix_means import PrefixMeans
from .supervision.position_weights import position_weights
from .supervision.proximal import proximal_target
from .supervision.routed import routed_loss


@dataclass(frozen=True)
class Objective:
    """The loss of one optimizer step, at each prefix; formulas are in `trbext/training/losses.py`."""

    # "full", "top_k", "sampled": estimators of the reverse KL; "routed": SAKI's; "cross_entropy": of the sampled token
    kind: str = "full"
    top_k: int | None = None  # for "top_k": tokens counted one by one
    weight_cap: float | None = None  # for "sampled" and "routed": largest weight of a token
    veto: float = 0.0  # exponent b of the target pi_T pi_S^b; 0 = the teacher
    log_ratio_cap: float | None = None  # for "sampled" and "routed": largest |log pi_S - log pi_T| of a token, nats
    proximal: float = 1.0  # the teacher's share of the target alpha pi_T + (1 - alpha) pi_S; 1 = the teacher
    position_gamma: float = 0.0  # of the weights of the tokens by their place; 0 = all 1

    @property
    def is_plain(self) -> bool:
        """Whether it is a divergence from the teacher over the whole vocabulary, for which TRL has a fused loss."""
        return self.estimates_kl and self.kind == "full" and self.position_gamma == 0

    @property
    def estimates_kl(self) -> bool:
        """Whether its sum over tokens is that of `reverse_kl`."""
        return self.kind in ("full", "top_k") and self.veto == 0 and self.proximal == 1

    def of_tokens(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        token: Tensor,
        log_weight: Tensor,
        accepted: Tensor,
        temperature: float,
    ) -> Tensor:
        """Returns the loss at each of n prefixes.

        Args:
            student_logits: [n, V], aligned.
            teacher_logits: [n, V], aligned.
            token: [n] int64, the tokens that were drawn.
            log_weight: [n] log pi_S(token) - log mu(token) when they were drawn, nats.
            accepted: [n] bool, their labels.
            temperature: Divides both logits.

        Returns:
            [n] nats.
        """
        if self.kind == "cross_entropy":
            return cross_entropy(student_logits, token, temperature=temperature)
        caps = {"weight_cap": self.weight_cap, "log_ratio_cap": self.log_ratio_cap}
        if self.kind == "routed":
            return routed_loss(
                student_logits, teacher_logits, token, log_weight, accepted, **caps, temperature=temperature
            )
        target = veto_target(student_logits, teacher_logits, self.veto)
        target = proximal_target(student_logits, target, self.proximal, temperature=temperature)
        if self.kind == "sampled":
            return sampled_reverse_kl(student_logits, target, token, log_weight, **caps, temperature=temperature)
        return reverse_kl(student_logits, target, top_k=self.top_k, temperature=temperature)


class LossTerms(NamedTuple):
    """The loss of a micro-batch and its companions."""

    loss: Tensor  # [] the sum over prefixes divided by `items`; carries the gradient
    entropy_sum: Tensor  # [] of the student, nats
    prefix_sums: Tensor  # see `PrefixMeans.sums`
    teacher_log_prob: Tensor  # [N] log pi_T of the tokens at the prefixes that count, nats


def prefix_loss(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    student_head: LMHead,
    teacher_head: Head,
    valid: Tensor,
    completion_ids: Tensor,
    log_weight: Tensor | None,
    accepted: Tensor | None = None,
    *,
    objective: Objective,
    fused_beta: float | None,
    items: Tensor | int,
    alignment: Alignment,
    temperature: float,
) -> LossTerms:
    """Returns the loss of `objective` over the prefixes of a micro-batch, and what is logged of them.

    Args:
        student_hidden: [B, C, H_S], the student's last hidden states at the prefix of each token of the completions.
        teacher_hidden: [B, C, H_T], the teacher's.
        student_head: Turns the student's states into logits.
        teacher_head: Turns the teacher's states into logits; on the device of the student's head.
        valid: [B, C] bool, the prefixes that count.
        completion_ids: [B, C] int64.
        log_weight: [B, C] log pi_S - log mu of the completions' tokens, nats; None if mu = pi_S.
        accepted: [B, C] bool, the labels of the completions' tokens; None if all are True.
        objective: What is minimized.
        fused_beta: Computes a plain objective by TRL's fused loss with this `beta` (1 = reverse KL); None uses ours.
        items: The sum over prefixes is divided by it.
        alignment: The vocabulary that both models share.
        temperature: Divides the logits of both models.

    Returns:
        The loss, which carries the gradient, and sums without a gradient.

    Raises:
        ValueError: The heads are on different devices.
    """
    # 1. Bring all tensors to the device of the heads, and keep the prefixes that count.
    device = student_head.device  # a device_map may end the backbone elsewhere than the head
    if teacher_head.device != device:
        raise ValueError(f"both lm_heads must be on one device, got {device} and {teacher_head.device}")
    student_hidden, teacher_hidden, valid = (x.to(device) for x in (student_hidden, teacher_hidden, valid))
    tokens = completion_ids.to(device)[valid]
    prefixes = valid.sum()
    # 2. A plain objective: TRL's fused loss, and the teacher's terms for the log.
    if fused_beta is not None and objective.is_plain:
        assert isinstance(teacher_head, LMHead)
        loss, entropy_sum, _ = _chunked_divergence_loss(
            student_hidden,
            teacher_hidden,
            student_head.weight,
            teacher_head.weight,
            valid,
            fused_beta,
            num_items_in_batch=items,
            student_lm_head_bias=student_head.bias,
            teacher_lm_head_bias=teacher_head.bias,
            student_logit_scale=student_head.scale,
            teacher_logit_scale=teacher_head.scale,
            student_final_logit_softcapping=student_head.softcap,
            teacher_final_logit_softcapping=teacher_head.softcap,
            temperature=temperature,
        )
        with maybe_gather_lm_head_ctx(teacher_head.weight, teacher_head.bias):
            teacher = teacher_terms(teacher_hidden[valid], teacher_head, tokens, alignment, temperature=temperature)
        sums = PrefixMeans.sums(loss * items, prefixes, teacher)
        return LossTerms(loss, entropy_sum.detach(), sums, teacher.log_prob)

    # 3. Another objective: our own loss, a chunk of prefixes at a time.
    def of_tokens(
        student_logits: Tensor, teacher_logits: Tensor, token: Tensor, weight: Tensor, label: Tensor
    ) -> Tensor:
        return objective.of_tokens(student_logits, teacher_logits, token, weight, label, temperature)

    terms = chunked_reverse_kl(
        student_hidden[valid],
        teacher_hidden[valid],
        student_head,
        teacher_head,
        tokens,
        alignment,
        top_k=objective.top_k,
        temperature=temperature,
        loss=None if objective.estimates_kl else of_tokens,
        log_weight=None if log_weight is None else log_weight.to(device)[valid],
        accepted=None if accepted is None else accepted.to(device)[valid],
        student_log_probs=objective.position_gamma != 0,
    )
    sums = PrefixMeans.sums(terms.reverse_kl.sum(), prefixes, terms.teacher)
    minimized = terms.loss
    if objective.position_gamma != 0:
        minimized = minimized * _weights_of(terms, valid, objective.position_gamma)
    return LossTerms(minimized.sum() / items, terms.student_entropy.sum().detach(), sums, terms.teacher.log_prob)


def _weights_of(terms: PrefixTerms, valid: Tensor, gamma: float) -> Tensor:
    """Returns the position weights [N] of the prefixes that are True in `valid` [B, C], in its order."""
    assert terms.student_log_prob is not None
    student, teacher = (
        torch.zeros(valid.shape, dtype=values.dtype, device=valid.device).masked_scatter(valid, values.detach())
        for values in (terms.student_log_prob, terms.teacher.log_prob)
    )
    return position_weights(student, teacher, valid, gamma)[valid]
