"""Makes TOP-D's proximal teacher (arXiv 2607.04751), which is never far from the student.

Its reward of a sampled token, log(alpha rho + 1 - alpha) with rho = pi_T / pi_S, is log Q - log pi_S for the mixture
Q = alpha pi_T + (1 - alpha) pi_S. The reverse KL to Q, from the sampled token, is therefore TOP-D's objective. It is
bounded: a token that the teacher excludes costs -log(1 - alpha).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..losses import tempered


def proximal_target(student_logits: Tensor, teacher_logits: Tensor, alpha: float, *, temperature: float) -> Tensor:
    """Returns the logits of Q = alpha pi_T + (1 - alpha) pi_S, to be used as the teacher's in a loss.

    The student's part is a constant, as that of a reward is.

    Args:
        student_logits: `[..., V]`, any float dtype.
        teacher_logits: `[..., V]`.
        alpha: The teacher's share, above 0 to 1; 1 returns the teacher.
        temperature: Of both models, by which the loss divides the result again.

    Returns:
        `[..., V]`, float32 or wider; the teacher's own logits if alpha is 1.
    """
    if alpha == 1:
        return teacher_logits
    of_teacher = tempered(teacher_logits, temperature).log_softmax(-1) + math.log(alpha)
    of_student = tempered(student_logits.detach(), temperature).log_softmax(-1) + math.log1p(-alpha)
    return torch.logaddexp(of_teacher, of_student) * temperature
