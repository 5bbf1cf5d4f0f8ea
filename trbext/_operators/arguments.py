"""Checks what the operators do not check of the arguments in Python, and lays [..., V] out as their [N, V]."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..limits import LARGEST_TEMPERATURE, LEAST_TEMPERATURE, STUDENT_KINDS, is_epsilon, not_an_epsilon
from ..top_k import TopK
from .dtensor import register_where_needed


def overload(operator: Any, epsilon: float | Tensor) -> Any:
    """Returns the overload by name: a tensor of one element would also fit that of a float, and be read from its
    device."""
    return operator.per_row if isinstance(epsilon, Tensor) else operator.default


def check_tensors(**arguments: object) -> None:
    for name, values in arguments.items():
        if not isinstance(values, Tensor):
            raise TypeError(f"trbext: {name} must be a tensor, got {type(values).__name__}")


def check_uniform(uniform: Tensor, shape: torch.Size) -> None:
    check_tensors(uniform=uniform)
    message = f"trbext.sample: uniform must have shape {list(shape)}, got {list(uniform.shape)}"
    if uniform.dim() != len(shape):
        raise ValueError(message)
    if torch.compiler.is_compiling():  # a length may be known at run time only, and the operator checks it there
        for size, wanted in zip(uniform.shape, shape, strict=True):
            torch._check(size == wanted)
    elif uniform.shape != shape:
        raise ValueError(message)


def check_epsilon(epsilon: float) -> None:
    if not is_epsilon(epsilon):
        raise ValueError(f"trbext: {not_an_epsilon(epsilon)}")


def check_temperature(temperature: float) -> None:
    if isinstance(temperature, Tensor) and temperature.numel() != 1:
        raise ValueError(f"trbext: temperature must be one number, got shape {list(temperature.shape)}")
    is_number = isinstance(temperature, Real | torch.SymFloat | Tensor)
    if not (is_number and LEAST_TEMPERATURE <= temperature <= LARGEST_TEMPERATURE):  # NaN too
        raise ValueError(f"trbext: temperature must be between 1e-6 and 1e6, got {temperature}")


def code_of_kind(student_kind: int | str) -> int:
    if not isinstance(student_kind, str):
        return student_kind
    if student_kind not in STUDENT_KINDS:
        raise ValueError(f"trbext.verify: student_kind must be one of {list(STUDENT_KINDS)}, got {student_kind!r}")
    return STUDENT_KINDS[student_kind]


def teacher_tensors(teacher_logits: Tensor | TopK) -> tuple[Tensor, ...]:
    """Returns the teacher's logits, or the two tensors of a top-k teacher. TypeError if it is neither."""
    if isinstance(teacher_logits, Tensor):
        return (teacher_logits,)
    if not isinstance(teacher_logits, Sequence) or len(teacher_logits) != 2:
        raise TypeError(f"trbext: teacher_logits must be a tensor or a TopK, got {type(teacher_logits).__name__}")
    for values in teacher_logits:
        check_tensors(teacher_logits=values)
    return tuple(teacher_logits)


def as_rows(
    student_logits: Tensor, teacher_logits: Tensor | TopK, epsilon: float | Tensor, temperature: float
) -> tuple[Tensor, tuple[Tensor, ...], float | Tensor]:
    """Checks the arguments, and lays [..., V] out as the [N, V] of the operators: a view if the strides allow one.

    Returns:
        The student's rows; the teacher's, one tensor of logits or the two of a top-k teacher; epsilon, a float or [N].
    """
    register_where_needed()
    check_tensors(student_logits=student_logits)
    shape = student_logits.shape
    teacher = teacher_tensors(teacher_logits)
    if isinstance(teacher_logits, Tensor):
        if student_logits.dim() < 1 or shape != teacher_logits.shape:
            raise ValueError(
                "trbext: student_logits and teacher_logits must have the same shape [..., V], got "
                f"{list(shape)} and {list(teacher_logits.shape)} "
                "(trbext.vocab aligns vocabularies of different width)"
            )
    else:
        _check_top_k(student_logits, *teacher)
    if shape[-1] == 0:
        raise ValueError(f"trbext: the vocabulary must have at least one token, got shape {list(shape)}")
    check_temperature(temperature)
    if isinstance(epsilon, Tensor):
        try:
            epsilon = epsilon.expand(shape[:-1]).reshape(-1)
        except RuntimeError:
            raise ValueError(
                f"trbext: epsilon must broadcast to {list(shape[:-1])}, got shape {list(epsilon.shape)}"
            ) from None
    else:
        check_epsilon(epsilon)
    if len(shape) == 2:  # a reshape to the same shape costs a microsecond, and one row of 32k tokens takes thirty
        return student_logits, teacher, epsilon
    student = student_logits.reshape(-1, shape[-1])
    return student, tuple(values.reshape(student.shape[0], values.shape[-1]) for values in teacher), epsilon


def _check_top_k(student_logits: Tensor, ids: Tensor, log_probs: Tensor) -> None:
    shape = student_logits.shape
    if student_logits.dim() < 1 or ids.shape[:-1] != shape[:-1] or ids.dim() < 1 or log_probs.shape != ids.shape:
        raise ValueError(
            f"trbext: ids and log_probs of a top-k teacher must have shape [..., k] with the rows of student_logits "
            f"{list(shape)}, got {list(ids.shape)} and {list(log_probs.shape)}"
        )


def as_batch(outputs: Sequence[Tensor], student_logits: Tensor) -> Sequence[Tensor]:
    """Lays the operators' [N] and [N, V] out as the [...] and [..., V] of the logits."""
    if student_logits.dim() == 2:
        return outputs
    batch = student_logits.shape[:-1]
    return [output.reshape(batch + output.shape[1:]) for output in outputs]
