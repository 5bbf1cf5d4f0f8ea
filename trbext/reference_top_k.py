"""Computes what the operators on a top-k teacher compute, in plain float64 PyTorch: the oracle of their tests.

The k tokens and the rest of the vocabulary are k + 1 outcomes, on which `trbext.reference` solves as on a vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import reference
from .limits import LARGEST_EXCESS_OF_MASS, ROUNDING_OF_MASS, STUDENT_KINDS
from .results import Blend, Sample, Solution, Verification
from .top_k import TopK


def _listed(teacher: TopK, vocab: int) -> tuple[Tensor, Tensor]:
    """Returns the column of each id, `vocab` for none [..., k], and how often each token is listed [..., V]."""
    named = (teacher.ids >= 0) & (teacher.ids < vocab)
    column = torch.where(named, teacher.ids.long(), vocab)
    count = torch.zeros(*column.shape[:-1], vocab + 1, dtype=torch.int64)
    return column, count.scatter_add(-1, column, torch.ones_like(column))[..., :vocab]


def outcomes(student_logits: Tensor, teacher: TopK, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Returns the log-probabilities of the k tokens and of the rest under the student and the teacher.

    Args:
        student_logits: [..., V], any float dtype.
        teacher: The k tokens.
        temperature: Divides the student's logits.

    Returns:
        Two of [..., k + 1] float64, nats, the rest last; NaN if the row is at fault.
    """
    # 1. The student's share of each.
    vocab = student_logits.shape[-1]
    log_student = (student_logits.double() / temperature).log_softmax(-1)
    column, count = _listed(teacher, vocab)
    padded = torch.cat([log_student, torch.full_like(log_student[..., :1], -torch.inf)], -1)
    student = torch.cat(
        [padded.gather(-1, column), log_student.masked_fill(count > 0, -torch.inf).logsumexp(-1, keepdim=True)], -1
    )
    # 2. The teacher's. A rest that is lost in the rounding of the k logarithms is the student's as far as they allow.
    log_probs = torch.where(teacher.ids == -1, -torch.inf, teacher.log_probs.double())
    mass = log_probs.exp().sum(-1)
    log_rest = torch.where(
        1 - mass >= ROUNDING_OF_MASS, (1 - mass).log(), student[..., -1].clamp(max=math.log(ROUNDING_OF_MASS))
    ).masked_fill((count > 0).all(-1), -torch.inf)
    of_teacher = torch.cat([log_probs, log_rest[..., None]], -1) - (mass + log_rest.exp()).log()[..., None]
    # 3. Mark the rows at fault.
    fault = ((teacher.ids < -1) | (teacher.ids >= vocab)).any(-1) | (count > 1).any(-1)
    fault |= ~(mass <= 1 + LARGEST_EXCESS_OF_MASS) | ((count > 0).all(-1) & (mass == 0))
    return student.masked_fill(fault[..., None], torch.nan), of_teacher.masked_fill(fault[..., None], torch.nan)


def _spread(student_logits: Tensor, teacher: TopK, temperature: float, of_outcomes: Tensor) -> Tensor:
    """Spreads log-probabilities of the outcomes [..., k + 1] over the vocabulary [..., V], the rest as the
    student's."""
    vocab = student_logits.shape[-1]
    column, count = _listed(teacher, vocab)
    rest = (student_logits.double() / temperature).masked_fill(count > 0, -torch.inf)
    share = rest.log_softmax(-1).masked_fill(rest == -torch.inf, -torch.inf)  # NaN of an empty rest
    spread = torch.where(share == -torch.inf, -torch.inf, share + of_outcomes[..., -1:])
    padded = torch.cat([spread, spread[..., :1]], -1)
    return padded.scatter(-1, column, of_outcomes[..., :-1])[..., :vocab]


def implied_teacher(student_logits: Tensor, teacher: TopK, temperature: float = 1.0) -> Tensor:
    """Returns the teacher over the whole vocabulary that a top-k teacher stands for.

    Args:
        student_logits: [..., V], any float dtype.
        teacher: The k tokens.
        temperature: Divides the student's logits.

    Returns:
        log pi_T, [..., V] float64, nats; NaN if the row is at fault. If the student excludes every token that is not
        listed, the rest is spread evenly over them.
    """
    student, of_teacher = outcomes(student_logits, teacher, temperature)
    implied = _spread(student_logits, teacher, temperature, of_teacher)
    _, count = _listed(teacher, student_logits.shape[-1])
    evenly = of_teacher[..., -1:] - (count == 0).sum(-1, keepdim=True).double().log()
    return torch.where((count == 0) & (student[..., -1:] == -torch.inf), evenly, implied)


def solve(student_logits: Tensor, teacher: TopK, epsilon: float | Tensor, *, temperature: float = 1.0) -> Solution:
    """Finds beta* by bisection over the k + 1 outcomes. Shapes and edges are those of `trbext.solve`.

    Args:
        student_logits: [..., V], any float dtype.
        teacher: The k tokens.
        epsilon: KL budget in nats, a float or [...].
        temperature: Divides the student's logits.

    Returns:
        As `trbext.reference.solve`.
    """
    return reference.solve(*outcomes(student_logits, teacher, temperature), epsilon)


def blend(student_logits: Tensor, teacher: TopK, epsilon: float | Tensor, *, temperature: float = 1.0) -> Blend:
    """Computes log mu over the vocabulary at beta*.

    Args:
        student_logits: [..., V], any float dtype.
        teacher: The k tokens.
        epsilon: KL budget in nats, a float or [...].
        temperature: Divides the student's logits.

    Returns:
        As `trbext.reference.blend`.
    """
    beta, kl, _ = solve(student_logits, teacher, epsilon, temperature=temperature)
    return Blend(behavior_log_probs(student_logits, teacher, beta, temperature), beta, kl)


def behavior_log_probs(student_logits: Tensor, teacher: TopK, beta: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns log mu_beta [..., V] in nats, float64.

    Args:
        student_logits: [..., V], any float dtype.
        teacher: The k tokens.
        beta: [...] in [0, 1]; NaN gives a row of NaN.
        temperature: Divides the student's logits.

    Returns:
        [..., V] float64, nats; -inf if mu is 0.
    """
    student, of_teacher = outcomes(student_logits, teacher, temperature)
    log_mu = reference.behavior_log_probs(student, of_teacher, beta)
    spread = _spread(student_logits, teacher, temperature, log_mu)
    return spread.masked_fill(beta.isnan()[..., None], torch.nan)


def sample(
    student_logits: Tensor,
    teacher: TopK,
    epsilon: float | Tensor,
    *,
    uniform: Tensor,
    temperature: float = 1.0,
) -> Sample:
    """Returns the token whose cell of the cumulative distribution of mu, in token order, holds `uniform`.

    Args:
        student_logits: [..., V], any float dtype.
        teacher: The k tokens.
        epsilon: KL budget in nats, a float or [...].
        uniform: [...] float64 in [0, 1).
        temperature: Divides the student's logits.

    Returns:
        As `trbext.reference.sample`.
    """
    log_mu, beta, kl = blend(student_logits, teacher, epsilon, temperature=temperature)
    fault = beta.isnan() | ~((uniform >= 0) & (uniform < 1))
    token = reference.token_at(log_mu.exp().nan_to_num(0.0), uniform)

    def at_token(values: Tensor) -> Tensor:
        return values.gather(-1, token[..., None])[..., 0].masked_fill(fault, torch.nan)

    return Sample(
        token.masked_fill(fault, -1),
        at_token(log_mu),
        at_token((student_logits.double() / temperature).log_softmax(-1)),
        at_token(implied_teacher(student_logits, teacher, temperature)),
        beta.masked_fill(fault, torch.nan),
        kl.masked_fill(fault, torch.nan),
    )


def verify(
    student_logits: Tensor,
    teacher: TopK,
    draft_tokens: Tensor,
    offsets: Tensor,
    epsilon: float | Tensor,
    *,
    temperature: float | Tensor = 1.0,
    student_rows: Tensor | None = None,
    teacher_rows: Tensor | None = None,
    vocab: int = 0,
    student_kind: int | str = 0,
    **options: Any,
) -> Verification:
    """Verifies drafts as `trbext.reference.verify` does against the implied teacher of each row.

    Args:
        student_logits: [R_S, V_S], as `trbext.verify`, like all arguments.
        teacher: The k tokens of each of R_T rows.
        draft_tokens: [N], -1 for no draft.
        offsets: [B + 1], the first row of each request.
        epsilon: KL budget in nats, a float or [B].
        temperature: A float or [B].
        student_rows: [N], the row of `student_logits` that each row is.
        teacher_rows: [N], the row of the teacher that each row is.
        vocab: Columns that count; 0: all.
        student_kind: 0 or "logits", 1 or "probabilities", 2 or "scaled_logits".
        options: The other arguments of `trbext.reference.verify`.

    Returns:
        As `trbext.reference.verify`.
    """
    # 1. The temperature of each row; 1 for the rows of no request.
    count, requests = len(draft_tokens), len(offsets) - 1
    heat = torch.as_tensor(temperature, dtype=torch.float32).expand(requests)
    owner, _ = reference.requests_of_rows(offsets, count)
    of_row = torch.ones(count, dtype=torch.float64)
    of_row[owner >= 0] = heat[owner[owner >= 0]].double()
    # 2. Both models' log-probabilities of each row; NaN for a row that is not there.
    columns = vocab or student_logits.shape[1]
    kind = STUDENT_KINDS[student_kind] if isinstance(student_kind, str) else student_kind
    raw, no_student = reference.rows_at(student_logits[:, :columns].double(), student_rows, count)
    scaled = {0: raw / of_row[:, None], 1: raw.log(), 2: raw}[kind]
    (ids, no_teacher), (listed, _) = (reference.rows_at(values, teacher_rows, count) for values in teacher)
    implied = implied_teacher(scaled, TopK(ids, listed))
    # 3. The dense reference divides the teacher by the temperature.
    return reference.verify(
        scaled.masked_fill((no_student | no_teacher)[:, None], torch.nan),
        implied * of_row[:, None],
        draft_tokens,
        offsets,
        epsilon,
        temperature=temperature,
        student_kind=2,
        **options,
    )
