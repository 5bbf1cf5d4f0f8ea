"""Describes calls of `trbext.verify` as data, and checks the law that any outcome of one must follow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from trbext import reference
from trbext.results import Verification

Epsilon = float | Tensor


class Verify(Protocol):
    def __call__(self, *arguments: Any, **options: Any) -> Verification: ...


@dataclass(frozen=True)
class Call:
    """The arguments, by name; `call.by(trbext.verify)` makes it."""

    student_logits: Tensor
    teacher_logits: Tensor
    draft_tokens: Tensor
    offsets: Tensor
    epsilon: Epsilon
    accept_uniform: Tensor
    draw_uniform: Tensor
    width: int
    temperature: Epsilon = 1.0
    student_rows: Tensor | None = None
    teacher_rows: Tensor | None = None
    vocab: int = 0
    student_kind: int | str = 0
    log_probs: bool = True

    def by(self, verify: Verify) -> Verification:
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        names = ("student_logits", "teacher_logits", "draft_tokens", "offsets", "epsilon")
        arguments = [options.pop(name) for name in names]
        return verify(*arguments, **options)

    def but(self, **changes: Any) -> Call:
        return dataclasses.replace(self, **changes)

    @property
    def requests(self) -> int:
        return len(self.offsets) - 1

    def rows_of(self, request: int) -> range:
        return range(int(self.offsets[request]), int(self.offsets[request + 1]))

    def temperature_of(self, request: int) -> float:
        values = torch.as_tensor(self.temperature, dtype=torch.float32).expand(self.requests)
        return float(values[request])

    def log_student_and_teacher(self, request: int, row: int) -> tuple[Tensor, Tensor]:
        """Returns log pi_S and log pi_T of the row at the temperature, each [V] float64, up to a constant."""
        heat = self.temperature_of(request)
        columns = self.vocab or min(self.student_logits.shape[1], self.teacher_logits.shape[1])
        student = self.student_logits[row if self.student_rows is None else int(self.student_rows[row]), :columns]
        teacher = self.teacher_logits[row if self.teacher_rows is None else int(self.teacher_rows[row]), :columns]
        kind = reference.STUDENT_KINDS.get(self.student_kind, self.student_kind)  # type: ignore[arg-type]
        x = {0: student.double() / heat, 1: student.double().log(), 2: student.double()}[kind]
        return x, teacher.double() / heat


def of_kind(logits: Tensor, temperature: Tensor, kind: int) -> Tensor:
    """Converts rows of raw logits [N, V] to the student's rows of that kind, with `temperature` [N]."""
    scaled = logits.float() / temperature[:, None]
    return {0: logits, 1: scaled.softmax(-1), 2: scaled}[kind]


def ragged(
    student: Tensor,
    teacher: Tensor,
    counts: list[int],
    *,
    seed: int = 0,
    epsilon: Epsilon = 0.05,
    temperature: Epsilon = 1.0,
    kind: int = 0,
    direct: float = 0.1,
    padding: int = 0,
) -> Call:
    """Returns requests of `counts` rows over raw logits [N, V], with drafts from the student.

    A `direct` part of the rows has no draft, and `padding` rows at the end belong to no request.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, requests = len(student), len(counts)
    assert rows == sum(counts) + padding
    heat = torch.as_tensor(temperature, dtype=torch.float32).expand(requests)
    of_row = torch.cat([heat.repeat_interleave(torch.tensor(counts)), torch.ones(padding)])
    pi = (student.double() / of_row[:, None].double()).softmax(-1)
    drafts = torch.multinomial(pi, 1, generator=generator)[:, 0] if rows else torch.empty(0, dtype=torch.int64)
    drafts[torch.rand(rows, generator=generator) < direct] = -1
    return Call(
        of_kind(student, of_row, kind),
        teacher,
        drafts,
        torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()]),
        epsilon,
        torch.rand(rows, dtype=torch.float64, generator=generator),
        torch.rand(rows, dtype=torch.float64, generator=generator),
        width=max([*counts, 1]),
        temperature=temperature,
        student_kind=kind,
    )


def ordinary(rows: int, vocab: int, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, vocab, generator=generator) * 2
    return student, student + spread * torch.randn(rows, vocab, generator=generator)


def same(got: Verification, expected: Verification) -> bool:
    """Tells whether two outcomes are bitwise the same."""
    return all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0))
        for a, b in zip(got, expected, strict=True)
    )


def assert_follows_the_law(call: Call, got: Verification, tolerance: float = 2e-6) -> None:
    """Checks that each decision is the one that mu at the returned beta asks for, except for uniforms within
    `tolerance` of the edge, and that log-probabilities are those of the policies. The call holds no fault."""
    for request in range(call.requests):
        rows = call.rows_of(request)
        emitted, accepted = int(got.emitted[request]), int(got.accepted[request])
        assert accepted <= emitted <= min(accepted + 1, len(rows)), request
        assert emitted == len(rows) or emitted == accepted + 1, request
        assert (got.tokens[request, emitted:] == -1).all()
        for place, row in enumerate(rows):
            if place >= emitted:
                assert math.isnan(got.beta[row]), row
                assert math.isnan(got.kl[row]), row
                continue
            x, y = call.log_student_and_teacher(request, row)
            log_mu, log_student = reference.behavior_log_probs(x, y, got.beta[row]), x.log_softmax(-1)
            mu, student = log_mu.exp(), log_student.exp()
            draft, token = int(call.draft_tokens[row]), int(got.tokens[request, place])
            if draft >= 0:
                ratio, u = float((log_mu - log_student)[draft].exp().nan_to_num(0.0)), float(call.accept_uniform[row])
                margin = tolerance * (1 + ratio)
                assert (u < ratio + margin) if place < accepted else (u > ratio - margin), (row, u, ratio)
            if place < accepted:
                assert token == draft, row
            else:
                weights = (mu - student).clamp(min=0) if draft >= 0 else mu
                if weights.sum() < tolerance:
                    weights = mu
                assert mu[token] > 0, row
                cumulative, target = weights.cumsum(0), float(call.draw_uniform[row]) * float(weights.sum())
                assert cumulative[token] >= target - tolerance, row
                assert cumulative[token] - weights[token] <= target + tolerance, row
            if call.log_probs:
                expected = torch.stack([log_student[token], y.log_softmax(-1)[token], log_mu[token]])
                assert torch.allclose(got.log_probs[request, place].double(), expected, atol=1e-5, rtol=1e-6), row
        assert not call.log_probs or got.log_probs[request, emitted:].isnan().all()


VOCAB, COUNTS = 1100, [3, 4, 2]  # rows 3 .. 6 are of request 1, which the faults are put into


def three_requests(kind: int = 0) -> Call:
    """Returns a call of three requests. All drafts of request 1 are accepted and its last row is direct, so a fault
    anywhere in it is met."""
    student, teacher = ordinary(10, VOCAB, seed=5)
    epsilon = torch.tensor([0.05, 0.1, 0.3])
    temperature = torch.tensor([1.0, 0.7, 1.3])
    call = ragged(student, teacher, COUNTS, epsilon=epsilon, temperature=temperature, kind=kind, direct=0.0, padding=1)
    drafts, accept = call.draft_tokens.clone(), call.accept_uniform.clone()
    drafts[6], accept[3:6] = -1, 0.0
    rows = torch.arange(10)
    return call.but(draft_tokens=drafts, accept_uniform=accept, student_rows=rows, teacher_rows=rows.int(), width=5)


def put(name: str, place: int, value: float | int) -> Callable[[Call], Call]:
    def change(call: Call) -> Call:
        values = getattr(call, name).clone()
        values[place] = value
        return call.but(**{name: values})

    return change
