"""Computes what `torch.ops.trb` computes in plain float64 PyTorch: the oracle of every test.

It is slow on purpose: it writes every tensor and bisects to machine precision, so that each line can be checked against
the paper (arXiv 2605.31159). With the logits a of the student and b of the teacher, over the common support C of both
softmaxes,

    mu_beta(i) = pi_S(i)^(1-beta) pi_T(i)^beta / Z_beta, beta* = max { beta in [0, 1] : KL(mu || pi_S) <= epsilon }.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .limits import LARGEST_TEMPERATURE, LEAST_TEMPERATURE, STUDENT_KINDS
from .results import Blend, Sample, Solution, Verification

# So many halvings of [0, 1] end at adjacent float64 numbers for every beta above 2^-20, and within 2^-72 of the root
# below that.
BISECTION_STEPS = 72


def rows_at_fault(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Returns whether each row holds NaN or +inf, or has no finite logit at all: [...] bool, for logits [..., V].

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].

    Returns:
        [...] bool.
    """

    def fault(logits: Tensor) -> Tensor:
        return (logits.isnan() | (logits == torch.inf)).any(-1) | (logits == -torch.inf).all(-1)

    return fault(student_logits) | fault(teacher_logits)


def _tilted(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    # 0 * -inf is NaN, so each end is taken as it is. Between the ends -inf of either model wins: the common support.
    at_teacher = torch.where(a == -torch.inf, a, b)
    return torch.where(weight == 0, a, torch.where(weight == 1, at_teacher, (1 - weight) * a + weight * b))


def behavior_log_probs(
    student_logits: Tensor, teacher_logits: Tensor, beta: Tensor, temperature: float = 1.0
) -> Tensor:
    """Returns log mu_beta [..., V] in nats, float64, for `beta` [...]; beta = 0 is the student on its whole support.

    Args:
        student_logits: [..., V], any float dtype.
        teacher_logits: [..., V], likewise.
        beta: [...] in [0, 1].
        temperature: Divides both logits.

    Returns:
        [..., V] float64, nats; -inf if mu is 0.
    """
    a, b = student_logits.double() / temperature, teacher_logits.double() / temperature
    weight = beta.double()[..., None]
    common = (a > -torch.inf) & (b > -torch.inf)
    # Between logits of 1e30 (masks, offsets) a difference has digits only if it is small. It is small between the
    # tokens that share mu's mass, so each model is centered by its logit of one of them: first of the likeliest token
    # of the common support, then of the likeliest one from there.
    mixed = _tilted(a, b, weight)
    for _ in range(3):
        likeliest = torch.where(common, mixed, -torch.inf).argmax(-1, keepdim=True)
        a, b = (x - x.gather(-1, likeliest).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for x in (a, b))
        mixed = torch.where(weight == 0, mixed, _tilted(a, b, weight))
    return mixed.log_softmax(-1)


def behavior_kl(student_logits: Tensor, teacher_logits: Tensor, beta: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns KL(mu_beta || pi_S) in nats, [...] float64, for given `beta` [...].

    It is summed as p (log p - log q) - p + q, all of whose terms are non-negative, so that budgets of 1e-6 keep their
    digits.

    Args:
        student_logits: [..., V], any float dtype.
        teacher_logits: [..., V], likewise.
        beta: [...] in [0, 1].
        temperature: Divides both logits.

    Returns:
        [...] float64, nats.
    """
    log_mu = behavior_log_probs(student_logits, teacher_logits, beta, temperature)
    log_student = (student_logits.double() / temperature).log_softmax(-1)
    ratio = torch.where(log_mu == -torch.inf, 0.0, log_mu - log_student)  # log mu / pi_S where mu > 0
    mu, student = log_mu.exp(), log_student.exp()
    # mu (ratio - 1) + pi_S = pi_S (e^r (r - 1) + 1); a short series if the difference would cancel.
    series = student * ratio**2 * (1 / 2 + ratio * (1 / 3 + ratio * (1 / 8 + ratio * (1 / 30 + ratio / 144))))
    return torch.where((ratio.abs() < 1e-3) & (log_mu > -torch.inf), series, mu * (ratio - 1) + student).sum(-1)


def solve(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: float | Tensor, *, temperature: float = 1.0
) -> Solution:
    """Finds beta* by bisection in float64. Shapes and edges are those of `trbext.solve`; `sweeps` counts bisections.

    Args:
        student_logits: [..., V], any float dtype.
        teacher_logits: [..., V], likewise.
        epsilon: KL budget in nats, a float or [...].
        temperature: Divides both logits.

    Returns:
        beta [...] float64; KL(mu || pi_S) [...] float64, nats; the bisections [...] int32.
    """
    shape = student_logits.shape[:-1]
    budget = torch.as_tensor(epsilon, dtype=torch.float64, device=student_logits.device).expand(shape)
    common = ((student_logits > -torch.inf) & (teacher_logits > -torch.inf)).any(-1)

    def feasible(beta: Tensor) -> Tensor:
        return behavior_kl(student_logits, teacher_logits, beta, temperature) <= budget

    zero, one = torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
    at_teacher = common & (budget > 0) & feasible(one)
    low, high = zero, one
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        ok = feasible(middle)
        low, high = torch.where(ok, middle, low), torch.where(ok, high, middle)
    beta = torch.where(at_teacher, one, torch.where(common & (budget > 0), low, zero))
    # A beta that never left the floor of the bisection met no feasible point: KL(0+) > epsilon, so it is the student.
    beta = torch.where(beta < 2.0 ** (1 - BISECTION_STEPS), zero, beta)
    kl = torch.where(beta == 0, zero, behavior_kl(student_logits, teacher_logits, beta, temperature))
    fault = rows_at_fault(student_logits, teacher_logits) | ~(budget >= 0)
    return Solution(
        beta.masked_fill(fault, torch.nan),
        kl.masked_fill(fault, torch.nan),
        torch.full(shape, BISECTION_STEPS, dtype=torch.int32),
    )


def blend(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: float | Tensor, *, temperature: float = 1.0
) -> Blend:
    """Computes log mu at beta* in float64. Shapes and edge cases are those of `trbext.blend`.

    Args:
        student_logits: [..., V], any float dtype.
        teacher_logits: [..., V], likewise.
        epsilon: KL budget in nats, a float or [...].
        temperature: Divides both logits.

    Returns:
        log mu [..., V] in nats; beta [...]; KL(mu || pi_S) [...] in nats. All are float64.
    """
    beta, kl, _ = solve(student_logits, teacher_logits, epsilon, temperature=temperature)
    log_probs = behavior_log_probs(student_logits, teacher_logits, beta, temperature)
    return Blend(log_probs.masked_fill(beta.isnan()[..., None], torch.nan), beta, kl)


def token_at(weights: Tensor, uniform: Tensor) -> Tensor:
    """Returns the token whose cell of the cumulative sum of `weights` holds the share `uniform` of the total.

    Args:
        weights: [..., V], non-negative, not all 0.
        uniform: [...] in [0, 1).

    Returns:
        [...] int64.
    """
    cumulative = weights.cumsum(-1)
    token = (cumulative <= (uniform * cumulative[..., -1])[..., None]).sum(-1)
    # Rounding at u -> 1 must not leave the support.
    last = weights.shape[-1] - 1 - (weights.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(token, last)


def sample(
    student_logits: Tensor,
    teacher_logits: Tensor,
    epsilon: float | Tensor,
    *,
    uniform: Tensor,
    temperature: float = 1.0,
) -> Sample:
    """Returns the token whose cell of the cumulative distribution of mu holds `uniform`, with the rules of
    `trbext.sample`.

    Args:
        student_logits: [..., V], any float dtype.
        teacher_logits: [..., V], likewise.
        epsilon: KL budget in nats, a float or [...].
        uniform: [...] float64 in [0, 1).
        temperature: Divides both logits.

    Returns:
        As `trbext.sample`, in float64.
    """
    log_probs, beta, kl = blend(student_logits, teacher_logits, epsilon, temperature=temperature)
    fault = beta.isnan() | ~((uniform >= 0) & (uniform < 1))
    token = token_at(log_probs.exp().nan_to_num(0.0), uniform)

    def at_token(values: Tensor) -> Tensor:
        return values.gather(-1, token[..., None])[..., 0].masked_fill(fault, torch.nan)

    return Sample(
        token.masked_fill(fault, -1),
        at_token(log_probs),
        at_token((student_logits.double() / temperature).log_softmax(-1)),
        at_token((teacher_logits.double() / temperature).log_softmax(-1)),
        beta.masked_fill(fault, torch.nan),
        kl.masked_fill(fault, torch.nan),
    )


def requests_of_rows(offsets: Tensor, count: int) -> tuple[Tensor, list[bool]]:
    """Returns the request of each of `count` rows, -1 for none, and which requests are not in their place: offsets
    must not fall behind those before, nor go beyond the rows."""
    owner, reached, out_of_place = torch.full((count,), -1), 0, []
    for r, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        out_of_place.append(not reached <= begin <= end <= count)
        if not out_of_place[r]:
            owner[begin:end] = r
        reached = max(reached, end) if end <= count else reached
    return owner, out_of_place


def rows_at(values: Tensor, rows: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Returns the rows [count, ...] of `values` that are meant, and which of them are not there."""
    index = torch.arange(count) if rows is None else rows.long()
    missing = (index < 0) | (index >= len(values))
    there = values if len(values) else values.new_zeros(1, *values.shape[1:])
    return there[index.masked_fill(missing, 0)], missing


def verify(
    student_logits: Tensor,
    teacher_logits: Tensor,
    draft_tokens: Tensor,
    offsets: Tensor,
    epsilon: float | Tensor,
    *,
    temperature: float | Tensor = 1.0,
    accept_uniform: Tensor,
    draw_uniform: Tensor,
    student_rows: Tensor | None = None,
    teacher_rows: Tensor | None = None,
    width: int,
    vocab: int = 0,
    student_kind: int | str = 0,
    log_probs: bool = False,
) -> Verification:
    """Verifies drafts, one request and one row after another, with the rules of `trbext.verify`.

    A draft x ~ pi_S is accepted with probability min(1, mu(x) / pi_S(x)), else replaced by a draw from
    max(mu - pi_S, 0), whose sum is the probability of a rejection. The token then follows
    min(pi_S, mu) + max(mu - pi_S, 0) = mu (Leviathan et al., arXiv 2211.17192). The next row counts only if the draft
    was accepted, since its prefix holds it.

    Args:
        student_logits: [R_S, V_S], as `trbext.verify`, like all arguments.
        teacher_logits: [R_T, V_T].
        draft_tokens: [N], -1 for no draft.
        offsets: [B + 1], the first row of each request.
        epsilon: KL budget in nats, a float or [B].
        temperature: A float or [B].
        accept_uniform: [N] float64 in [0, 1).
        draw_uniform: [N] float64 in [0, 1).
        student_rows: [N], the row of `student_logits` that each row is.
        teacher_rows: [N], the row of `teacher_logits` that each row is.
        width: Columns of the returned tokens.
        vocab: Columns that count; 0: those that both models have.
        student_kind: 0 or "logits", 1 or "probabilities", 2 or "scaled_logits".
        log_probs: Whether log-probabilities are returned.

    Returns:
        As `trbext.verify`, in float64.
    """
    # 1. Find the request of each row, and the requests that are at fault.
    count, requests = len(draft_tokens), len(offsets) - 1
    kind = STUDENT_KINDS[student_kind] if isinstance(student_kind, str) else student_kind
    columns = vocab or min(student_logits.shape[1], teacher_logits.shape[1])
    budget, heat = (torch.as_tensor(v, dtype=torch.float32).expand(requests).double() for v in (epsilon, temperature))
    request_fault = ~(budget >= 0) | ~((heat >= LEAST_TEMPERATURE) & (heat <= LARGEST_TEMPERATURE))
    owner, out_of_place = requests_of_rows(offsets, count)

    # 2. Compute the policy of each row, and the rows that are at fault.
    student, no_student = rows_at(student_logits[:, :columns].double(), student_rows, count)
    teacher, no_teacher = rows_at(teacher_logits[:, :columns].double(), teacher_rows, count)
    per_row = heat[owner] if requests else heat.new_ones(count)
    teacher = teacher / per_row[:, None]
    student = {0: student / per_row[:, None], 1: student.log(), 2: student}[kind]
    budget_of_row = budget[owner] if requests else heat.new_zeros(count)
    policy = blend(student, teacher, budget_of_row)
    log_student, log_teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    drafts = draft_tokens.long()
    row_fault = policy.beta.isnan() | no_student | no_teacher | (drafts < -1) | (drafts >= columns)

    # 3. Take the rows of each request in order, until one stops it.
    def in_range(uniform: Tensor) -> bool:
        return bool((uniform >= 0) & (uniform < 1))

    def drawn(row: int, uniform: Tensor) -> int:
        """Returns the token in place of a rejected draft, or of none."""
        mu = policy.log_probs[row].exp()
        residual = (mu - log_student[row].exp()).clamp(min=0) if drafts[row] >= 0 else mu
        return int(token_at(residual if residual.sum() > 0 else mu, uniform))

    tokens = torch.full((requests, width), -1)
    beta, kl = torch.full((2, count), torch.nan, dtype=torch.float64)
    emitted, accepted = torch.zeros(2, requests, dtype=torch.int32)
    values = torch.full((requests, width, 3), torch.nan, dtype=torch.float64)
    for r, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        if out_of_place[r] or (end > begin and (request_fault[r] or end - begin > width)):
            emitted[r] = -1
            continue
        for row in range(begin, end):
            draft = int(drafts[row])
            if row_fault[row] or (draft >= 0 and not in_range(accept_uniform[row])):
                emitted[r] = -1
                break
            ratio = (policy.log_probs[row, draft] - log_student[row, draft]).exp()  # NaN if both are 0
            accepted_draft = draft >= 0 and bool(accept_uniform[row] < ratio)
            if not accepted_draft and not in_range(draw_uniform[row]):
                emitted[r] = -1
                break
            token, place = draft if accepted_draft else drawn(row, draw_uniform[row]), row - begin
            tokens[r, place] = token
            values[r, place] = torch.stack([p[row, token] for p in (log_student, log_teacher, policy.log_probs)])
            beta[row], kl[row] = policy.beta[row], policy.kl[row]
            emitted[r] += 1
            accepted[r] += accepted_draft
            if not accepted_draft:
                break
    return Verification(tokens, emitted, accepted, beta, kl, values if log_probs else torch.empty(0, 0, 3))
