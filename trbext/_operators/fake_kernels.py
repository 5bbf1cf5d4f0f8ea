"""Gives torch.ops.trb empty outputs for tracing, after the checks that C++ makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .fake_checks import (
    Outputs,
    check_column,
    check_device,
    check_logits,
    check_numbers,
    check_requests,
    check_vocabulary,
    new_outputs,
    per_row,
    shape_of,
)


def check_pair(op: str, student: Tensor, teacher: Tensor, epsilon: float | Tensor, temperature: float) -> None:
    check_logits(op, "student_logits", student)
    check_logits(op, "teacher_logits", teacher)

    def unlike() -> str:
        return (
            f"{op}: student_logits and teacher_logits must have the same shape, got {shape_of(student)} and "
            f"{shape_of(teacher)} (trbext.vocab aligns vocabularies of different width)"
        )

    torch._check(student.shape[0] == teacher.shape[0], unlike)
    torch._check(student.shape[1] == teacher.shape[1], unlike)
    check_vocabulary(op, student)
    check_device(op, "teacher_logits", teacher, student)
    check_numbers(op, student, epsilon, temperature)


def blend(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: Any, *, temperature: float = 1.0
) -> tuple[Tensor, ...]:
    check_pair("trb::blend", student_logits, teacher_logits, epsilon, temperature)
    log_probs = student_logits.new_empty(student_logits.shape, dtype=torch.float32)
    return (log_probs, *per_row(student_logits, torch.float32, torch.float32))


def solve(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: Any, *, temperature: float = 1.0
) -> tuple[Tensor, ...]:
    check_pair("trb::solve", student_logits, teacher_logits, epsilon, temperature)
    return per_row(student_logits, torch.float32, torch.float32, torch.int32)


def sample(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: Any, uniform: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, ...]:
    op = "trb::sample"
    check_pair(op, student_logits, teacher_logits, epsilon, temperature)
    check_column(op, "uniform", uniform, "[N]", student_logits.shape[0], (torch.float64,), student_logits)
    return per_row(student_logits, torch.int64, *[torch.float32] * 5)


def _check_verify_logits(
    student_logits: Tensor,
    teacher_logits: Tensor,
    vocab: Any,
) -> None:
    """Checks the logits of verify, and the columns that count."""
    op, student = "trb::verify", student_logits
    check_logits(op, "student_logits", student_logits)
    check_logits(op, "teacher_logits", teacher_logits)
    check_device(op, "teacher_logits", teacher_logits, student)
    for logits in (student_logits, teacher_logits):
        torch._check(
            logits.shape[1] >= 1,
            lambda: (
                f"{op}: the vocabulary must have at least one token, got student_logits {shape_of(student_logits)} "
                f"and teacher_logits {shape_of(teacher_logits)}"
            ),
        )
        torch._check(
            vocab <= logits.shape[1],
            lambda: (
                f"{op}: vocab must be between 0 (the width both models have) and "
                f"{min(student_logits.shape[1], teacher_logits.shape[1])}, got {vocab}"
            ),
        )
    torch._check(
        vocab >= 0, lambda: f"{op}: vocab must be between 0 (the width both models have) and theirs, got {vocab}"
    )


def verify(
    student_logits: Tensor,
    teacher_logits: Tensor,
    draft_tokens: Tensor,
    offsets: Tensor,
    epsilon: Tensor,
    temperature: Tensor,
    accept_uniform: Tensor,
    draw_uniform: Tensor,
    *,
    student_rows: Tensor | None = None,
    teacher_rows: Tensor | None = None,
    width: Any,
    vocab: Any = 0,
    student_kind: int = 0,
    log_probs: bool = False,
) -> Outputs:
    _check_verify_logits(student_logits, teacher_logits, vocab)
    check_requests(
        "trb::verify", student_logits, draft_tokens, offsets, epsilon, temperature, accept_uniform, draw_uniform,
        student_rows, teacher_rows, width, student_kind, "teacher_logits", teacher_logits,
    )  # fmt: skip
    return new_outputs(student_logits, draft_tokens, offsets, width, log_probs)
