"""Loads `libtrb_ops.so` and gives `torch.ops.trb` its fake kernels, its missing autograd and its CUDA error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from . import _C

# Beside _C and not beside this file: in an editable install this file is in the source tree, the library is not.
LIBRARY_PATH = Path(_C.__file__).parent / "libtrb_ops.so"
OPERATORS = (
    *(name + overload for name in ("blend", "solve", "sample") for overload in ("", ".per_row")),
    "verify",
    "verify.out",
)

torch.ops.load_library(LIBRARY_PATH)


def _check_pair(student_logits: Tensor, teacher_logits: Tensor, epsilon: float | Tensor, temperature: float) -> None:
    """What csrc/checks.h asks of shapes, for tracing."""
    torch._check(student_logits.dim() == 2, lambda: "trb: student_logits must have shape [N, V]")
    torch._check(teacher_logits.dim() == 2, lambda: "trb: teacher_logits must have shape [N, V]")
    torch._check(student_logits.shape[0] == teacher_logits.shape[0], lambda: "trb: both logits must have the same N")
    torch._check(student_logits.shape[1] == teacher_logits.shape[1], lambda: "trb: both logits must have the same V")
    if isinstance(epsilon, Tensor):
        torch._check(epsilon.shape[0] == student_logits.shape[0], lambda: "trb: epsilon must have shape [N]")
    elif not epsilon >= 0:  # NaN too
        raise ValueError(f"trb: epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got {epsilon}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"trb: temperature must be positive and finite, got {temperature}")


def _per_row(logits: Tensor, *dtypes: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(logits.new_empty(logits.shape[0], dtype=dtype) for dtype in dtypes)


def _fake_blend(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: Any, *, temperature: float = 1.0
) -> tuple[Tensor, ...]:
    _check_pair(student_logits, teacher_logits, epsilon, temperature)
    log_probs = student_logits.new_empty(student_logits.shape, dtype=torch.float32)
    return (log_probs, *_per_row(student_logits, torch.float32, torch.float32))


def _fake_solve(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: Any, *, temperature: float = 1.0
) -> tuple[Tensor, ...]:
    _check_pair(student_logits, teacher_logits, epsilon, temperature)
    return _per_row(student_logits, torch.float32, torch.float32, torch.int32)


def _fake_sample(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: Any, uniform: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, ...]:
    _check_pair(student_logits, teacher_logits, epsilon, temperature)
    torch._check(uniform.shape[0] == student_logits.shape[0], lambda: "trb: uniform must have shape [N]")
    return _per_row(student_logits, torch.int64, *[torch.float32] * 5)


def _check_verify(
    student_logits: Tensor,
    teacher_logits: Tensor,
    draft_tokens: Tensor,
    offsets: Tensor,
    width: int,
    vocab: int,
    student_kind: int,
) -> None:
    torch._check(student_logits.dim() == 2, lambda: "trb: student_logits must have shape [N, V]")
    torch._check(teacher_logits.dim() == 2, lambda: "trb: teacher_logits must have shape [N, V]")
    torch._check(draft_tokens.dim() == 1, lambda: "trb: draft_tokens must have shape [N]")
    torch._check(offsets.dim() == 1, lambda: "trb: offsets must have shape [B + 1]")
    torch._check(width >= 1, lambda: f"trb: width must be at least 1, got {width}")
    torch._check(0 <= vocab <= student_logits.shape[1], lambda: "trb: vocab must be at most the width of the student")
    torch._check(0 <= vocab <= teacher_logits.shape[1], lambda: "trb: vocab must be at most the width of the teacher")
    torch._check(student_kind in (0, 1, 2), lambda: f"trb: student_kind must be 0, 1 or 2, got {student_kind}")


def _fake_verify(
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
    width: int,
    vocab: int = 0,
    student_kind: int = 0,
    log_probs: bool = False,
) -> tuple[Tensor, ...]:
    _check_verify(student_logits, teacher_logits, draft_tokens, offsets, width, vocab, student_kind)
    rows, requests = draft_tokens.shape[0], offsets.shape[0] - 1
    return (
        student_logits.new_empty(requests, width, dtype=torch.int64),
        student_logits.new_empty(requests, dtype=torch.int32),
        student_logits.new_empty(requests, dtype=torch.int32),
        student_logits.new_empty(rows, dtype=torch.float32),
        student_logits.new_empty(rows, dtype=torch.float32),
        student_logits.new_empty((requests, width, 3) if log_probs else (0, 0, 3), dtype=torch.float32),
    )


def _fake_verify_out(
    student_logits: Tensor,
    teacher_logits: Tensor,
    draft_tokens: Tensor,
    offsets: Tensor,
    *_: Tensor,
    width: int,
    vocab: int = 0,
    student_kind: int = 0,
    tokens: Tensor,
    emitted: Tensor,
    accepted: Tensor,
    beta: Tensor,
    kl: Tensor,
    out_log_probs: Tensor,
    **__: Any,
) -> tuple[Tensor, ...]:
    _check_verify(student_logits, teacher_logits, draft_tokens, offsets, width, vocab, student_kind)
    return tokens, emitted, accepted, beta, kl, out_log_probs


def _no_cuda_kernels(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError(
        "trbext was built without CUDA kernels, so torch.ops.trb takes CPU tensors only, got CUDA tensors. Move them "
        "to the CPU, or install the CUDA toolkit (nvcc >= 12.4) and trbext again: "
        "TRB_CUDA=ON pip install --force-reinstall --no-deps ."
    )


for _name, _fake in (("blend", _fake_blend), ("solve", _fake_solve), ("sample", _fake_sample)):
    torch.library.register_fake(f"trb::{_name}", _fake)
    torch.library.register_fake(f"trb::{_name}.per_row", _fake)

torch.library.register_fake("trb::verify", _fake_verify)
torch.library.register_fake("trb::verify.out", _fake_verify_out)

# The loss never differentiates through the behavior policy: with no autograd kernel at all, PyTorch's fallback would
# mark the outputs of trainable logits as part of a graph that cannot be run backward.
_autograd = torch.library.Library("trb", "IMPL", "Autograd")
for _name in OPERATORS:
    _autograd.impl(_name, torch.library.fallthrough_kernel)

if not _C.cuda_compiled:
    _cuda = torch.library.Library("trb", "IMPL", "CUDA")
    for _name in OPERATORS:
        _cuda.impl(_name, _no_cuda_kernels)
