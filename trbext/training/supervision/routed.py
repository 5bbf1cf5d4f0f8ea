"""Computes SAKI's routed loss (arXiv 2609.36601): the label of a token decides what supervises its prefix.

At a token x of a rollout from mu, labeled as `trbext/rollout/events.py` says,

    accepted:  w (log pi_S(x) - log pi_T(x)), the reverse KL from the sampled token;   gradient by grad log pi_S(x)
    replaced:  -log pi_S(argmax pi_T), the surprise of the teacher's most probable token

The token that replaced a draft decides how the rollout continues, and is no target itself. With
w = max(1, pi_S(x) / mu(x)) the accepted tokens estimate KL(pi_S, pi_T) without bias, because
sum min(mu, pi_S) max(1, pi_S / mu) f = sum pi_S f. SAKI has no weights: `log_weight` is 0 then.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses import cross_entropy, sampled_reverse_kl


def routed_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    token: Tensor,
    log_weight: Tensor,
    accepted: Tensor,
    *,
    weight_cap: float | None = None,
    log_ratio_cap: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Computes the routed loss at each prefix.

    Args:
        student_logits: `[..., V]`, any float dtype; -inf excludes a token.
        teacher_logits: `[..., V]`, likewise, with the EOS ids merged.
        token: `[...]` int64, drawn from mu.
        log_weight: `[...]` log pi_S(token) - log mu(token) when it was drawn, nats.
        accepted: `[...]` bool, the labels.
        weight_cap: The largest w, at least 1; None sets no limit.
        log_ratio_cap: As in `sampled_reverse_kl`.
        temperature: Divides both logits.

    Returns:
        `[...]` nats. The teacher's most probable token is taken among those that both models allow.
    """
    sampled = sampled_reverse_kl(
        student_logits,
        teacher_logits,
        token,
        log_weight.clamp(min=0.0),
        weight_cap=weight_cap,
        log_ratio_cap=log_ratio_cap,
        temperature=temperature,
    )
    best = teacher_logits.masked_fill(student_logits == -torch.inf, -torch.inf).argmax(-1)
    return torch.where(accepted, sampled, cross_entropy(student_logits, best, temperature=temperature))
