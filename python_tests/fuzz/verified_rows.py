"""Checks what verify promises: a row's verdict by the law of speculative sampling, and a request's by those of its
rows."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import trbext
from trbext import TopK, reference, reference_top_k
from trbext.results import Verification

from .random_rows import Batch
from .solved_rows import Faults, at, differs, infeasible, not_maximal, off_log, range_of, rows_of

MOST_ROWS = 400  # of a batch


def check(batch: Batch, seed: int, given: Tensor | TopK | None = None) -> Faults:
    """Checks every row as a request of its own, then requests of several rows, on the first rows of the batch. `given`
    as in solved_rows.check."""
    rng = np.random.default_rng([seed, batch.number, 1])
    rows = min(len(batch), MOST_ROWS)
    kind = int(rng.integers(0, 3)) if rng.random() < 0.5 else 0
    student, logits = _of_kind(batch.student[:rows], kind, batch.temperature)
    teacher, epsilon = rows_of(batch.teacher if given is None else given, slice(rows)), batch.epsilon[:rows]
    drafts, accept, draw = _drafts(rng, logits, batch), torch.from_numpy(rng.random(rows)), batch.uniform[:rows]
    heat = torch.full((rows,), batch.temperature)
    # Rows lie at other places in the logits, in another order.
    order = torch.from_numpy(rng.permutation(rows))
    place = order.argsort()

    def verified(offsets: Tensor, epsilon: Tensor, width: int) -> Verification:
        return trbext.verify(
            student[order], teacher, drafts, offsets, epsilon, temperature=heat[: len(epsilon)], accept_uniform=accept,
            draw_uniform=draw, student_rows=place.int(), teacher_rows=None, width=width, student_kind=kind,
            log_probs=True,
        )  # fmt: skip

    got = verified(torch.arange(rows + 1), epsilon, 1)
    if isinstance(given, TopK):  # what the k tokens imply depends on the student's logits as verify has them
        implied = reference_top_k.implied_teacher(logits, rows_of(given, slice(rows)), batch.temperature)
        batch = replace(batch, teacher=implied * batch.temperature)
    found = _by_the_law(batch, logits, got, drafts, accept)
    if kind == 0:
        solved = trbext.solve(batch.student[:rows], teacher, epsilon, temperature=batch.temperature)
        done = got.emitted == 1
        found["verify is not solve"] = done & (differs(got.beta, solved.beta) | differs(got.kl, solved.kl))
    cuts = np.unique(np.concatenate([[0, rows], rng.integers(0, rows + 1, rows // 3)]))
    shared = epsilon[cuts[:-1]]
    apart = verified(torch.arange(rows + 1), shared.repeat_interleave(torch.from_numpy(np.diff(cuts))), 1)
    together = verified(torch.from_numpy(cuts), shared, int(np.diff(cuts).max()))
    found["requests are not their rows"] = _composed(cuts, apart, together)
    return {name: _padded(where, len(batch)) for name, where in found.items()}


def _padded(where: Tensor, size: int) -> Tensor:
    return torch.cat([where, where.new_zeros(size - len(where))])


def _of_kind(raw: Tensor, kind: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns the student's rows as a caller of that kind has them, and the logits that verify makes of them."""
    if kind == 0:
        return raw, raw
    scaled = raw.float() / temperature
    held = scaled if kind == 2 else scaled.softmax(-1)
    logits = (held if kind == 2 else held.log()) * temperature
    largest = torch.finfo(torch.float32).max
    return held, torch.where(logits.isinf() & held.isfinite() & (held != 0), logits.clamp(-largest, largest), logits)


def _drafts(rng: np.random.Generator, logits: Tensor, batch: Batch) -> Tensor:
    """Returns drafts: most drawn from the student, some any token, some none."""
    rows, vocab = logits.shape
    pi = (logits.double() / batch.temperature).softmax(-1).nan_to_num(0.0)
    likely = (pi.cumsum(-1) <= torch.from_numpy(rng.random(rows))[:, None]).sum(-1).clamp(max=vocab - 1)
    return torch.where(
        torch.from_numpy(rng.random(rows) < 0.6), likely, torch.from_numpy(rng.integers(-1, vocab, rows))
    )


def _by_the_law(batch: Batch, logits: Tensor, got: Verification, drafts: Tensor, accept: Tensor) -> Faults:
    rows, heat = len(drafts), batch.temperature
    teacher, epsilon, draw = batch.teacher[:rows], batch.epsilon[:rows], batch.uniform[:rows]
    # A softmax of NaN or +inf is NaN everywhere, and so is one of nothing but -inf: kind 1 has the same rows at fault.
    fault = reference.rows_at_fault(logits, teacher) | ~(epsilon >= 0)
    accepted, drafted = got.accepted == 1, drafts >= 0
    drawable = (draw >= 0) & (draw < 1)
    expected = torch.where(fault, -1, torch.where(accepted | drawable, 1, -1))
    done = (got.emitted == 1) & ~fault
    beta = got.beta.nan_to_num(0.0)
    log_mu = reference.behavior_log_probs(logits, teacher, beta, heat)
    log_student = (logits.double() / heat).log_softmax(-1)
    log_teacher = (teacher.double() / heat).log_softmax(-1)
    kl = torch.where(beta > 0, reference.behavior_kl(logits, teacher, beta, heat), 0.0)

    draft = drafts.clamp(min=0)
    log_mu_draft, log_student_draft = at(log_mu, draft), at(log_student, draft)
    ratio = (log_mu_draft - log_student_draft).exp().nan_to_num(0.0)
    # Both log-probabilities are differences of float32 numbers of that size.
    size = sum(values.abs().nan_to_num(0.0, 0.0, 0.0) for values in (log_mu_draft, log_student_draft))
    doubt = ratio * (1e-5 + 3e-6 * size) + 1e-12
    # No student draws a token of probability e^-1e12, and the difference of two such logarithms has no digits.
    judged = drafted & done & (size < 1e12)

    token = got.tokens[:, 0].clamp(0, batch.vocab - 1)
    mu = log_mu.exp()
    residual = torch.where(drafted[:, None], (mu - log_student.exp()).clamp(min=0), mu)
    left = residual.sum(-1)
    cumulative = residual.cumsum(-1)
    upper = at(cumulative, token) / left
    lower = upper - at(residual, token) / left
    cell = 1e-6 + 2e-6 / left.clamp(min=1e-30)
    drawn = done & ~accepted
    exactly = drawn & (~drafted | (left > 1e-5))  # else rounding decides what is left, or whether anything is
    spans = range_of(logits, teacher, heat)
    found = {
        "verify: emitted": got.emitted != expected,
        "verify: verdict": judged & ((accept < ratio - doubt) & ~accepted | (accept > ratio + doubt) & accepted),
        "verify: invalid token": done & ~((got.tokens[:, 0] >= 0) & (got.tokens[:, 0] < batch.vocab))
        | drawn & ~(at(log_mu, token) > -torch.inf)
        | accepted & (got.tokens[:, 0] != drafts),
        "verify: token of another cell": exactly & ~((lower - cell <= draw) & (draw <= upper + cell)),
        "verify: NaN without a fault": done & (got.beta.isnan() | got.kl.isnan() | got.log_probs.isnan().any((1, 2))),
        "verify: a fault without NaN": ~done & ~(got.beta.isnan() & got.kl.isnan() & got.log_probs.isnan().all((1, 2))),
        "verify: infeasible": done & infeasible(kl, epsilon),
        "verify: not maximal": done & not_maximal(logits, teacher, heat, epsilon, beta, kl),
    }
    for i, (name, values) in enumerate((("pi_S", log_student), ("pi_T", log_teacher), ("mu", log_mu))):
        found[f"verify: log {name}"] = done & off_log(got.log_probs[:, 0, i], at(values, token), spans)
    return found


def _composed(cuts: np.ndarray, apart: Verification, together: Verification) -> Tensor:
    """Marks, at its first row, each request of several rows whose outcome is not that of its rows one after another."""
    found = torch.zeros(len(apart.emitted), dtype=torch.bool)
    emitted, accepted, tokens = apart.emitted.tolist(), apart.accepted.tolist(), apart.tokens[:, 0].tolist()
    for request, (begin, end) in enumerate(itertools.pairwise(cuts.tolist())):
        expected: list[int] = []
        stands, fault = 0, False
        for row in range(begin, end):
            fault = emitted[row] == -1
            if fault:
                break
            expected.append(tokens[row])
            stands += accepted[row]
            if not accepted[row]:
                break
        padding = [-1] * (together.tokens.shape[1] - len(expected))
        outcome = (together.tokens[request].tolist(), int(together.emitted[request]), int(together.accepted[request]))
        found[begin] = outcome != (expected + padding, -1 if fault else len(expected), stands)
    return found
