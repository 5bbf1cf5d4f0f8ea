"""Gives torch.ops.trb empty outputs for tracing, after the checks that C++ makes, in the same words.

Sizes may be symbolic; dtypes, devices and numbers are not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .limits import LARGEST_TEMPERATURE, LEAST_TEMPERATURE, is_epsilon, not_an_epsilon

LOGITS = (torch.float32, torch.float16, torch.bfloat16)
INDICES = (torch.int32, torch.int64)
MOST_COLUMNS = 2**31 - 1


def _name(dtype: torch.dtype) -> str:
    """Returns the name of `dtype` in C++."""
    names = {torch.float32: "Float", torch.float64: "Double", torch.float16: "Half", torch.bfloat16: "BFloat16",
             torch.int32: "Int", torch.int64: "Long", torch.int16: "Short"}  # fmt: skip
    return names.get(dtype, str(dtype))


def _shape(tensor: Tensor) -> str:
    return "[" + ", ".join(map(str, tensor.shape)) + "]"


def _require(condition: Any, message: str) -> None:
    """Checks a condition that holds no symbol."""
    if not condition:
        raise RuntimeError(message)


def _check_device(op: str, name: str, tensor: Tensor, student: Tensor) -> None:
    _require(tensor.device == student.device, f"{op}: {name} must be on the device of student_logits")


def _check_logits(op: str, name: str, logits: Tensor) -> None:
    _require(logits.dim() == 2, f"{op}: {name} must have shape [N, V], got {_shape(logits)}")
    _require(logits.dtype in LOGITS, f"{op}: {name} must be float32, float16 or bfloat16, got {_name(logits.dtype)}")


def _check_column(
    op: str, name: str, values: Tensor, shape: str, size: Any, dtypes: tuple[torch.dtype, ...], student: Tensor
) -> None:
    """Checks a tensor of one dimension; `size` None is any size."""

    def message() -> str:
        return (
            f"{op}: {name} must have shape {shape}"
            + ("" if size is None else f" = [{size}]")
            + (f", got {_shape(values)}")
        )

    _require(values.dim() == 1, message())
    if size is not None:
        torch._check(values.shape[0] == size, message)
    wanted = "int32 or int64" if dtypes == INDICES else " or ".join(map(_name, dtypes))
    _require(values.dtype in dtypes, f"{op}: {name} must be {wanted}, got {_name(values.dtype)}")
    _check_device(op, name, values, student)


def _check_pair(op: str, student: Tensor, teacher: Tensor, epsilon: float | Tensor, temperature: float) -> None:
    _check_logits(op, "student_logits", student)
    _check_logits(op, "teacher_logits", teacher)

    def unlike() -> str:
        return (
            f"{op}: student_logits and teacher_logits must have the same shape, got {_shape(student)} and "
            f"{_shape(teacher)} (trbext.vocab aligns vocabularies of different width)"
        )

    torch._check(student.shape[0] == teacher.shape[0], unlike)
    torch._check(student.shape[1] == teacher.shape[1], unlike)
    torch._check(
        student.shape[1] >= 1, lambda: f"{op}: the vocabulary must have at least one token, got shape {_shape(student)}"
    )
    _check_device(op, "teacher_logits", teacher, student)
    _require(
        LEAST_TEMPERATURE <= temperature <= LARGEST_TEMPERATURE,
        f"{op}: temperature must be between 1e-6 and 1e6, got {temperature}",
    )
    if isinstance(epsilon, Tensor):
        _check_column(op, "epsilon", epsilon, "[N]", student.shape[0], (torch.float32,), student)
    else:
        _require(is_epsilon(epsilon), f"{op}: {not_an_epsilon(epsilon)}")


def _per_row(logits: Tensor, *dtypes: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(logits.new_empty(logits.shape[0], dtype=dtype) for dtype in dtypes)


def blend(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: Any, *, temperature: float = 1.0
) -> tuple[Tensor, ...]:
    _check_pair("trb::blend", student_logits, teacher_logits, epsilon, temperature)
    log_probs = student_logits.new_empty(student_logits.shape, dtype=torch.float32)
    return (log_probs, *_per_row(student_logits, torch.float32, torch.float32))


def solve(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: Any, *, temperature: float = 1.0
) -> tuple[Tensor, ...]:
    _check_pair("trb::solve", student_logits, teacher_logits, epsilon, temperature)
    return _per_row(student_logits, torch.float32, torch.float32, torch.int32)


def sample(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: Any, uniform: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, ...]:
    op = "trb::sample"
    _check_pair(op, student_logits, teacher_logits, epsilon, temperature)
    _check_column(op, "uniform", uniform, "[N]", student_logits.shape[0], (torch.float64,), student_logits)
    return _per_row(student_logits, torch.int64, *[torch.float32] * 5)


def _check_verify(
    student_logits: Tensor,
    teacher_logits: Tensor,
    draft_tokens: Tensor,
    offsets: Tensor,
    epsilon: Tensor,
    temperature: Tensor,
    accept_uniform: Tensor,
    draw_uniform: Tensor,
    student_rows: Tensor | None,
    teacher_rows: Tensor | None,
    width: Any,
    vocab: Any,
    student_kind: int,
) -> None:
    # 1. The logits, and the columns that count.
    op, student = "trb::verify", student_logits
    _check_logits(op, "student_logits", student_logits)
    _check_logits(op, "teacher_logits", teacher_logits)
    _check_device(op, "teacher_logits", teacher_logits, student)
    for logits in (student_logits, teacher_logits):
        torch._check(
            logits.shape[1] >= 1,
            lambda: (
                f"{op}: the vocabulary must have at least one token, got student_logits {_shape(student_logits)} "
                f"and teacher_logits {_shape(teacher_logits)}"
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
    # 2. The numbers.
    torch._check(width >= 1, lambda: f"{op}: width must be at least 1 and less than 2^31, got {width}")
    torch._check(width <= MOST_COLUMNS, lambda: f"{op}: width must be at least 1 and less than 2^31, got {width}")
    _require(
        student_kind in (0, 1, 2),
        f"{op}: student_kind must be 0 (logits), 1 (probabilities) or 2 (logits divided by the temperature), "
        f"got {student_kind}",
    )
    # 3. What rows and requests hold.
    _check_column(op, "draft_tokens", draft_tokens, "[N]", None, INDICES, student)
    _check_column(op, "offsets", offsets, "[B + 1]", None, INDICES, student)
    torch._check(offsets.shape[0] >= 1, lambda: f"{op}: offsets must have shape [B + 1], got [0]")
    rows, requests = draft_tokens.shape[0], offsets.shape[0] - 1
    _check_column(op, "epsilon", epsilon, "[B]", requests, (torch.float32,), student)
    _check_column(op, "temperature", temperature, "[B]", requests, (torch.float32,), student)
    _check_column(op, "accept_uniform", accept_uniform, "[N]", rows, (torch.float64,), student)
    _check_column(op, "draw_uniform", draw_uniform, "[N]", rows, (torch.float64,), student)
    # 4. The rows of the logits that are meant.
    for model, logits, indices in (
        ("student", student_logits, student_rows),
        ("teacher", teacher_logits, teacher_rows),
    ):
        if indices is not None:
            _check_column(op, f"{model}_rows", indices, "[N]", rows, INDICES, student)
        else:
            _check_enough_rows(op, model, logits, rows)


def _check_enough_rows(op: str, model: str, logits: Tensor, rows: Any) -> None:
    torch._check(
        logits.shape[0] >= rows,
        lambda: (
            f"{op}: {model}_logits must have at least N = {rows} rows if {model}_rows is not given, "
            f"got {_shape(logits)}"
        ),
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
) -> tuple[Tensor, ...]:
    _check_verify(
        student_logits, teacher_logits, draft_tokens, offsets, epsilon, temperature, accept_uniform, draw_uniform,
        student_rows, teacher_rows, width, vocab, student_kind,
    )  # fmt: skip
    rows, requests = draft_tokens.shape[0], offsets.shape[0] - 1
    return (
        student_logits.new_empty(requests, width, dtype=torch.int64),
        student_logits.new_empty(requests, dtype=torch.int32),
        student_logits.new_empty(requests, dtype=torch.int32),
        student_logits.new_empty(rows, dtype=torch.float32),
        student_logits.new_empty(rows, dtype=torch.float32),
        student_logits.new_empty((requests, width, 3) if log_probs else (0, 0, 3), dtype=torch.float32),
    )


def verify_out(
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
    tokens: Tensor,
    emitted: Tensor,
    accepted: Tensor,
    beta: Tensor,
    kl: Tensor,
    out_log_probs: Tensor,
) -> tuple[Tensor, ...]:
    op = "trb::verify"
    _check_verify(
        student_logits, teacher_logits, draft_tokens, offsets, epsilon, temperature, accept_uniform, draw_uniform,
        student_rows, teacher_rows, width, vocab, student_kind,
    )  # fmt: skip
    rows, requests = draft_tokens.shape[0], offsets.shape[0] - 1
    _check_out(op, "tokens", tokens, (requests, width), INDICES, student_logits)
    _check_out(op, "emitted", emitted, (requests,), (torch.int32,), student_logits)
    _check_out(op, "accepted", accepted, (requests,), (torch.int32,), student_logits)
    _check_out(op, "beta", beta, (rows,), (torch.float32,), student_logits)
    _check_out(op, "kl", kl, (rows,), (torch.float32,), student_logits)
    if log_probs:
        _check_out(op, "log_probs", out_log_probs, (requests, width, 3), (torch.float32,), student_logits)
    else:
        torch._check(
            out_log_probs.numel() == 0,
            lambda: f"{op}: log_probs must have no element if log_probs=False, got shape {_shape(out_log_probs)}",
        )
    return tokens, emitted, accepted, beta, kl, out_log_probs


def _check_out(
    op: str, name: str, out: Tensor, shape: tuple[Any, ...], dtypes: tuple[torch.dtype, ...], student: Tensor
) -> None:
    def message() -> str:
        return f"{op}: output {name} must have shape [{', '.join(map(str, shape))}], got {_shape(out)}"

    _require(out.dim() == len(shape), message())
    for size, wanted in zip(out.shape, shape, strict=True):
        torch._check(size == wanted, message)
    names = " or ".join(map(_name, dtypes))
    _require(out.dtype in dtypes, f"{op}: output {name} must be {names}, got {_name(out.dtype)}")
    _require(out.is_contiguous(), f"{op}: output {name} must be contiguous")
    _check_device(op, name, out, student)
