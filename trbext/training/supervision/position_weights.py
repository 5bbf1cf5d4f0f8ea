"""Weights the prefixes of a completion by how far it has departed from the teacher before (IW-OPD, arXiv 2606.22600).

With the discrepancy A_t = |log pi_T(x_t) - log pi_S(x_t)| of each token of a completion of T tokens,

    w_t = 1 + gamma (1 - sum_{s<t} A_s / sum_{s<=T} A_s)

falls from 1 + gamma at the first token to nearly 1 at the last.
"""

from __future__ import annotations

import torch
from torch import Tensor


def position_weights(student_log_prob: Tensor, teacher_log_prob: Tensor, valid: Tensor, gamma: float) -> Tensor:
    """Returns the weights of the prefixes of a batch.

    Args:
        student_log_prob: [B, C] nats, log pi_S of the tokens.
        teacher_log_prob: [B, C] nats, log pi_T of the tokens; -inf if the teacher excludes one.
        valid: [B, C] bool, the tokens that count.
        gamma: At least 0.

    Returns:
        [B, C], without a gradient. After a token that the teacher excludes, the weight is 1.
    """
    discrepancy = (teacher_log_prob - student_log_prob).detach().abs().masked_fill(~valid, 0.0)
    before = torch.nn.functional.pad(discrepancy.cumsum(1)[:, :-1], (1, 0))
    total = discrepancy.sum(1, keepdim=True)
    share = before / total.clamp(min=torch.finfo(total.dtype).tiny)  # 0 / tiny of models that agree
    return 1 + gamma * (1 - share.masked_fill(before == torch.inf, 1.0))
