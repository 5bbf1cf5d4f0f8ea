"""Gives the operators on a top-k teacher empty outputs for tracing, after the checks that C++ makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .fake_checks import (
    INDICES,
    Outputs,
    check_column,
    check_device,
    check_logits,
    check_numbers,
    check_requests,
    check_vocabulary,
    name_of,
    new_outputs,
    per_row,
    require,
    shape_of,
)


def _check_top_k(op: str, ids: Tensor, log_probs: Tensor, student: Tensor) -> None:
    def unlike() -> str:
        return (
            f"{op}: teacher_log_probs must have the shape of teacher_ids, got {shape_of(log_probs)} and {shape_of(ids)}"
        )

    require(ids.dim() == 2, f"{op}: teacher_ids must have shape [N, k], got {shape_of(ids)}")
    require(log_probs.dim() == 2, unlike())
    torch._check(log_probs.shape[0] == ids.shape[0], unlike)
    torch._check(log_probs.shape[1] == ids.shape[1], unlike)
    require(ids.dtype in INDICES, f"{op}: teacher_ids must be int32 or int64, got {name_of(ids.dtype)}")
    require(
        log_probs.dtype == torch.float32,
        f"{op}: teacher_log_probs must be Float, got {name_of(log_probs.dtype)}",
    )
    check_device(op, "teacher_ids", ids, student)
    check_device(op, "teacher_log_probs", log_probs, student)


def _check_rows(
    op: str, student: Tensor, ids: Tensor, log_probs: Tensor, epsilon: float | Tensor, temperature: float
) -> None:
    check_logits(op, "student_logits", student)
    check_vocabulary(op, student)
    _check_top_k(op, ids, log_probs, student)
    torch._check(
        ids.shape[0] == student.shape[0],
        lambda: f"{op}: teacher_ids must have shape [N, k] with N = {student.shape[0]}, got {shape_of(ids)}",
    )
    check_numbers(op, student, epsilon, temperature)


def blend_top_k(
    student_logits: Tensor, teacher_ids: Tensor, teacher_log_probs: Tensor, epsilon: Any, *, temperature: float = 1.0
) -> tuple[Tensor, ...]:
    _check_rows("trb::blend_top_k", student_logits, teacher_ids, teacher_log_probs, epsilon, temperature)
    log_probs = student_logits.new_empty(student_logits.shape, dtype=torch.float32)
    return (log_probs, *per_row(student_logits, torch.float32, torch.float32))


def solve_top_k(
    student_logits: Tensor, teacher_ids: Tensor, teacher_log_probs: Tensor, epsilon: Any, *, temperature: float = 1.0
) -> tuple[Tensor, ...]:
    _check_rows("trb::solve_top_k", student_logits, teacher_ids, teacher_log_probs, epsilon, temperature)
    return per_row(student_logits, torch.float32, torch.float32, torch.int32)


def sample_top_k(
    student_logits: Tensor,
    teacher_ids: Tensor,
    teacher_log_probs: Tensor,
    epsilon: Any,
    uniform: Tensor,
    *,
    temperature: float = 1.0,
) -> tuple[Tensor, ...]:
    op = "trb::sample_top_k"
    _check_rows(op, student_logits, teacher_ids, teacher_log_probs, epsilon, temperature)
    check_column(op, "uniform", uniform, "[N]", student_logits.shape[0], (torch.float64,), student_logits)
    return per_row(student_logits, torch.int64, *[torch.float32] * 5)


def _check_verify_rows(student: Tensor, ids: Tensor, log_probs: Tensor, vocab: Any) -> None:
    op = "trb::verify_top_k"
    check_logits(op, "student_logits", student)
    check_vocabulary(op, student)
    _check_top_k(op, ids, log_probs, student)

    def out_of_range() -> str:
        return f"{op}: vocab must be between 0 (the student's width) and {student.shape[1]}, got {vocab}"

    torch._check(vocab >= 0, out_of_range)
    torch._check(vocab <= student.shape[1], out_of_range)


def verify_top_k(
    student_logits: Tensor,
    teacher_ids: Tensor,
    teacher_log_probs: Tensor,
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
    _check_verify_rows(student_logits, teacher_ids, teacher_log_probs, vocab)
    check_requests(
        "trb::verify_top_k", student_logits, draft_tokens, offsets, epsilon, temperature, accept_uniform, draw_uniform,
        student_rows, teacher_rows, width, student_kind, "teacher_ids", teacher_ids,
    )  # fmt: skip
    return new_outputs(student_logits, draft_tokens, offsets, width, log_probs)
