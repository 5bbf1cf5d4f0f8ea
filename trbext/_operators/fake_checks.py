"""Checks the arguments of the fake kernels as C++ does, in the same words.

Sizes may be symbolic; dtypes, devices and numbers are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..limits import LARGEST_TEMPERATURE, LEAST_TEMPERATURE, is_epsilon, not_an_epsilon

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
LOGITS = (torch.float32, torch.float16, torch.bfloat16)
INDICES = (torch.int32, torch.int64)
MOST_COLUMNS = 2**31 - 1


def name_of(dtype: torch.dtype) -> str:
    """Returns the name of `dtype` in C++."""
    names = {torch.float32: "Float", torch.float64: "Double", torch.float16: "Half", torch.bfloat16: "BFloat16",
             torch.int32: "Int", torch.int64: "Long", torch.int16: "Short"}  # fmt: skip
    return names.get(dtype, str(dtype))


def shape_of(tensor: Tensor) -> str:
    return "[" + ", ".join(map(str, tensor.shape)) + "]"


def require(condition: Any, message: str) -> None:
    """Checks a condition that holds no symbol."""
    if not condition:
        raise RuntimeError(message)


def check_device(op: str, name: str, tensor: Tensor, student: Tensor) -> None:
    require(tensor.device == student.device, f"{op}: {name} must be on the device of student_logits")


def check_logits(op: str, name: str, logits: Tensor) -> None:
    require(logits.dim() == 2, f"{op}: {name} must have shape [N, V], got {shape_of(logits)}")
    require(logits.dtype in LOGITS, f"{op}: {name} must be float32, float16 or bfloat16, got {name_of(logits.dtype)}")


def check_column(
    op: str, name: str, values: Tensor, shape: str, size: Any, dtypes: tuple[torch.dtype, ...], student: Tensor
) -> None:
    """Checks a tensor of one dimension; `size` None is any size."""

    def message() -> str:
        return (
            f"{op}: {name} must have shape {shape}"
            + ("" if size is None else f" = [{size}]")
            + (f", got {shape_of(values)}")
        )

    require(values.dim() == 1, message())
    if size is not None:
        torch._check(values.shape[0] == size, message)
    wanted = "int32 or int64" if dtypes == INDICES else " or ".join(map(name_of, dtypes))
    require(values.dtype in dtypes, f"{op}: {name} must be {wanted}, got {name_of(values.dtype)}")
    check_device(op, name, values, student)


def check_vocabulary(op: str, student: Tensor) -> None:
    torch._check(
        student.shape[1] >= 1,
        lambda: f"{op}: the vocabulary must have at least one token, got shape {shape_of(student)}",
    )


def check_numbers(op: str, student: Tensor, epsilon: float | Tensor, temperature: float) -> None:
    require(
        LEAST_TEMPERATURE <= temperature <= LARGEST_TEMPERATURE,
        f"{op}: temperature must be between 1e-6 and 1e6, got {temperature}",
    )
    if isinstance(epsilon, Tensor):
        check_column(op, "epsilon", epsilon, "[N]", student.shape[0], (torch.float32,), student)
    else:
        require(is_epsilon(epsilon), f"{op}: {not_an_epsilon(epsilon)}")


def per_row(logits: Tensor, *dtypes: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(logits.new_empty(logits.shape[0], dtype=dtype) for dtype in dtypes)


def check_enough_rows(op: str, name: str, values: Tensor, index_name: str, rows: Any) -> None:
    torch._check(
        values.shape[0] >= rows,
        lambda: f"{op}: {name} must have at least N = {rows} rows if {index_name} is not given, got {shape_of(values)}",
    )


def check_requests(
    op: str,
    student: Tensor,
    draft_tokens: Tensor,
    offsets: Tensor,
    epsilon: Tensor,
    temperature: Tensor,
    accept_uniform: Tensor,
    draw_uniform: Tensor,
    student_rows: Tensor | None,
    teacher_rows: Tensor | None,
    width: Any,
    student_kind: int,
    teacher_name: str,
    teacher: Tensor,
) -> None:
    """Checks the arguments of verify for any kind of teacher, of which `teacher` has the rows."""
    # 1. Check the numbers.
    torch._check(width >= 1, lambda: f"{op}: width must be at least 1 and less than 2^31, got {width}")
    torch._check(width <= MOST_COLUMNS, lambda: f"{op}: width must be at least 1 and less than 2^31, got {width}")
    require(
        student_kind in (0, 1, 2),
        f"{op}: student_kind must be 0 (logits), 1 (probabilities) or 2 (logits divided by the temperature), "
        f"got {student_kind}",
    )
    # 2. Check what rows and requests hold.
    check_column(op, "draft_tokens", draft_tokens, "[N]", None, INDICES, student)
    check_column(op, "offsets", offsets, "[B + 1]", None, INDICES, student)
    torch._check(offsets.shape[0] >= 1, lambda: f"{op}: offsets must have shape [B + 1], got [0]")
    rows, requests = draft_tokens.shape[0], offsets.shape[0] - 1
    check_column(op, "epsilon", epsilon, "[B]", requests, (torch.float32,), student)
    check_column(op, "temperature", temperature, "[B]", requests, (torch.float32,), student)
    check_column(op, "accept_uniform", accept_uniform, "[N]", rows, (torch.float64,), student)
    check_column(op, "draw_uniform", draw_uniform, "[N]", rows, (torch.float64,), student)
    # 3. Check the rows of the logits that are meant.
    for index_name, indices, name, values in (
        ("student_rows", student_rows, "student_logits", student),
        ("teacher_rows", teacher_rows, teacher_name, teacher),
    ):
        if indices is not None:
            check_column(op, index_name, indices, "[N]", rows, INDICES, student)
        else:
            check_enough_rows(op, name, values, index_name, rows)


def new_outputs(student: Tensor, draft_tokens: Tensor, offsets: Tensor, width: Any, log_probs: bool) -> Outputs:
    """Returns the outputs of verify."""
    rows, requests = draft_tokens.shape[0], offsets.shape[0] - 1
    return (
        student.new_empty(requests, width, dtype=torch.int64),
        student.new_empty(requests, dtype=torch.int32),
        student.new_empty(requests, dtype=torch.int32),
        student.new_empty(rows, dtype=torch.float32),
        student.new_empty(rows, dtype=torch.float32),
        student.new_empty((requests, width, 3) if log_probs else (0, 0, 3), dtype=torch.float32),
    )


def into_outputs(op: str, verify: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """Returns the fake kernel of the overload of verify that writes to given outputs, from that of the plain one."""

    def verify_out(
        *inputs: Any,
        tokens: Tensor,
        emitted: Tensor,
        accepted: Tensor,
        beta: Tensor,
        kl: Tensor,
        out_log_probs: Tensor,
        **options: Any,
    ) -> Outputs:
        new = verify(*inputs, **options)
        outputs = tokens, emitted, accepted, beta, kl, out_log_probs
        for name, out, wanted in zip(("tokens", "emitted", "accepted", "beta", "kl"), outputs, new, strict=False):
            check_out(op, name, out, wanted.shape, INDICES if name == "tokens" else (wanted.dtype,), wanted)
        if options.get("log_probs", False):
            check_out(op, "log_probs", out_log_probs, new[-1].shape, (torch.float32,), new[-1])
        else:
            torch._check(
                out_log_probs.numel() == 0,
                lambda: f"{op}: log_probs must have no element if log_probs=False, got shape {shape_of(out_log_probs)}",
            )
        return outputs

    return verify_out


def check_out(
    op: str, name: str, out: Tensor, shape: tuple[Any, ...], dtypes: tuple[torch.dtype, ...], student: Tensor
) -> None:
    def message() -> str:
        return f"{op}: output {name} must have shape [{', '.join(map(str, shape))}], got {shape_of(out)}"

    require(out.dim() == len(shape), message())
    for size, wanted in zip(out.shape, shape, strict=True):
        torch._check(size == wanted, message)
    names = " or ".join(map(name_of, dtypes))
    require(out.dtype in dtypes, f"{op}: output {name} must be {names}, got {name_of(out.dtype)}")
    require(out.is_contiguous(), f"{op}: output {name} must be contiguous")
    check_device(op, name, out, student)
