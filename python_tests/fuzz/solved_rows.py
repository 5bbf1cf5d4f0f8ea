"""Checks each row against what solve, sample and blend promise (docs/operators.md): kind of fault -> [N] bool."""

from __future__ import annotations

import torch
from torch import Tensor

import trbext
from trbext import TopK, reference
from trbext.results import Blend, Sample, Solution

from .random_rows import Batch

EXCESS, EXCESS_NATS = 1e-4, 1e-7  # of KL above the budget
SHORTFALL, SHORTFALL_NATS = 3e-4, 1e-9  # of KL below the budget although a larger beta would fit
# Of the reported KL; the last is of both, per nat that D spans.
KL_ERROR, KL_ERROR_NATS, KL_ERROR_OF_RANGE = 2e-5, 6e-6, 2e-7
CELL = 1e-6  # by which a uniform may miss its token's cell
LOG_ERROR, LOG_ERROR_NATS, LOG_ERROR_OF_RANGE = 1e-6, 1e-5, 4e-8  # of log-probabilities; the last alike
LARGEST_RANGE = 1000.0  # nats: rows of a larger range are solved in float64, whose rounding does not show,
UNLIKELY, UNLIKELY_ERROR_OF_RANGE = -20.0, 1e-15  # but in log-probabilities below this one: per nat of the range

Faults = dict[str, Tensor]


def at(values: Tensor, token: Tensor) -> Tensor:
    return values.gather(-1, token[:, None])[:, 0]


def differs(got: Tensor, expected: Tensor) -> Tensor:
    return ~((got == expected) | (got.isnan() & expected.isnan()))


def off(got: Tensor, expected: Tensor, relative: float | Tensor, absolute: float | Tensor) -> Tensor:
    # A log-probability may be below the range of the float32 numbers that are returned.
    return ~(
        (got == expected.to(got.dtype)) | ((got.double() - expected).abs() <= absolute + relative * expected.abs())
    )


def range_of(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns the range of D = (teacher - student) / T over the common support, in nats; 0 if that support is empty."""
    common = (student > -torch.inf) & (teacher > -torch.inf)
    d = (teacher.double() - student.double()) / temperature
    high = torch.where(common, d, -torch.inf).amax(-1)
    low = torch.where(common, d, torch.inf).amin(-1)
    return (high - low).clamp(min=0.0)


def off_log(got: Tensor, expected: Tensor, spans: Tensor) -> Tensor:
    of_unlikely = torch.where(expected < UNLIKELY, UNLIKELY_ERROR_OF_RANGE * spans, 0.0)
    rounding = LOG_ERROR_OF_RANGE * spans.clamp(max=LARGEST_RANGE)
    return off(got, expected, LOG_ERROR, LOG_ERROR_NATS + rounding + of_unlikely)


def infeasible(kl: Tensor, epsilon: Tensor) -> Tensor:
    return ~(kl <= epsilon.double() * (1 + EXCESS) + EXCESS_NATS)


def not_maximal(
    student: Tensor, teacher: Tensor, temperature: float, epsilon: Tensor, beta: Tensor, kl: Tensor
) -> Tensor:
    """Marks the rows of [N] without a fault for which some larger float32 beta has a KL within the budget."""
    short = (beta < 1) & (epsilon > 0) & (kl < epsilon.double() * (1 - SHORTFALL) - SHORTFALL_NATS)
    common = ((student > -torch.inf) & (teacher > -torch.inf)).any(-1)
    rows = (short & common).nonzero()[:, 0]
    if len(rows) == 0:
        return short & common
    # KL is flat below 1e-12, except for the student's own value, and the next float32 number would say nothing about
    # it.
    above = torch.nextafter(beta[rows], torch.ones(())).clamp(min=1e-12).double()
    larger = reference.behavior_kl(student[rows], teacher[rows], above, temperature)
    found = torch.zeros_like(short)
    found[rows] = larger <= epsilon[rows].double()
    return found


def check(batch: Batch, given: Tensor | TopK | None = None) -> Faults:
    """Checks each row of the batch. `given` is what the operators get in place of the batch's teacher: k tokens, if the
    batch's teacher is the one that they imply."""
    student, teacher, epsilon, uniform, heat = (
        batch.student, batch.teacher, batch.epsilon, batch.uniform, batch.temperature
    )  # fmt: skip
    given = teacher if given is None else given
    solved = trbext.solve(student, given, epsilon, temperature=heat)
    drawn = trbext.sample(student, given, epsilon, uniform=uniform, temperature=heat)
    blended = trbext.blend(student, given, epsilon, temperature=heat)
    fault = reference.rows_at_fault(student, teacher) | ~(epsilon >= 0)
    good, drawable = ~fault, ~fault & (uniform >= 0) & (uniform < 1)
    beta = solved.beta.nan_to_num(0.0)
    log_mu = reference.behavior_log_probs(student, teacher, beta, heat)
    kl = torch.where(beta > 0, reference.behavior_kl(student, teacher, beta, heat), 0.0)
    spans = range_of(student, teacher, heat)
    of_range = KL_ERROR_OF_RANGE * spans.clamp(max=LARGEST_RANGE)
    found = {
        "NaN without a fault": good & (solved.beta.isnan() | solved.kl.isnan() | blended.log_probs.isnan().any(-1)),
        "a fault without NaN": fault & ~(solved.beta.isnan() & solved.kl.isnan() & blended.log_probs.isnan().all(-1)),
        "beta outside [0, 1]": good & ~((solved.beta >= 0) & (solved.beta <= 1)),
        "infeasible": good & infeasible(kl, epsilon),
        "not maximal": good & not_maximal(student, teacher, heat, epsilon, beta, kl),
        "reported KL": good & off(solved.kl, kl, KL_ERROR + of_range, KL_ERROR_NATS + of_range),
        "log mu of blend": good & off_log(blended.log_probs, log_mu, spans[:, None]).any(-1),
        "blend is not solve": differs(blended.beta, solved.beta) | differs(blended.kl, solved.kl),
    }
    return (
        found
        | _of_the_draw(batch, drawn, solved, log_mu, spans, drawable)
        | _alone(batch, given, drawn, solved, blended)
    )


def _of_the_draw(
    batch: Batch, drawn: Sample, solved: Solution, log_mu: Tensor, spans: Tensor, drawable: Tensor
) -> Faults:
    heat, uniform = batch.temperature, batch.uniform
    token = drawn.token.clamp(0, batch.vocab - 1)
    mu = log_mu.exp()
    cumulative = mu.cumsum(-1)
    upper = at(cumulative, token) / cumulative[:, -1]
    lower = upper - at(mu, token) / cumulative[:, -1]
    log_student = (batch.student.double() / heat).log_softmax(-1)
    log_teacher = (batch.teacher.double() / heat).log_softmax(-1)
    nothing = (drawn.token == -1) & torch.stack([values.isnan() for values in drawn[1:]]).all(0)
    return {
        "invalid token": drawable
        & ~((drawn.token >= 0) & (drawn.token < batch.vocab) & (at(log_mu, token) > -torch.inf)),
        "token at a fault": ~drawable & ~nothing,
        "token of another cell": drawable & ~((lower - CELL <= uniform) & (uniform <= upper + CELL)),
        "sample is not solve": drawable & (differs(drawn.beta, solved.beta) | differs(drawn.kl, solved.kl)),
        "log mu of the token": drawable & off_log(drawn.log_prob, at(log_mu, token), spans),
        "log pi_S of the token": drawable & off_log(drawn.student_log_prob, at(log_student, token), spans),
        "log pi_T of the token": drawable & off_log(drawn.teacher_log_prob, at(log_teacher, token), spans),
    }


def rows_of(given: Tensor | TopK, rows: slice) -> Tensor | TopK:
    return TopK(*(values[rows] for values in given)) if isinstance(given, TopK) else given[rows]


def _alone(batch: Batch, given: Tensor | TopK, drawn: Sample, solved: Solution, blended: Blend) -> Faults:
    """Computes a few rows by themselves, with gaps between the student's logits, and expects the same bits."""
    found = torch.zeros(len(batch), dtype=torch.bool)
    for row in range(0, len(batch), max(1, len(batch) // 4)):
        one = slice(row, row + 1)
        wide = torch.full((1, 2 * batch.vocab + 1), torch.nan).to(batch.student.dtype)
        strided = wide[:, 1::2]
        strided.copy_(batch.student[one])
        inputs = strided, rows_of(given, one), batch.epsilon[one]
        again = (
            *trbext.sample(*inputs, uniform=batch.uniform[one], temperature=batch.temperature),
            *trbext.solve(*inputs, temperature=batch.temperature),
            *trbext.blend(*inputs, temperature=batch.temperature),
        )
        expected = [values[one] for values in (*drawn, *solved, *blended)]
        found[row] = any(differs(a, b).any() for a, b in zip(again, expected, strict=True))
    return {"depends on batch or strides": found}
