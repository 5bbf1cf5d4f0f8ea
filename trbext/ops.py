"""Typed functions over `torch.ops.trb`: the trust-region blend of a student and a teacher (arXiv 2605.31159).

For each prefix, with student distribution pi_S and teacher distribution pi_T at the given temperature,

    mu(i) = pi_S(i)^(1-beta) pi_T(i)^beta / Z,    beta = max { beta in [0, 1] : KL(mu || pi_S) <= epsilon }.

Shared by all functions here:
  student_logits, teacher_logits: [..., V], float32, float16 or bfloat16 (the two may differ), any strides, same device.
      Raw logits: no log_softmax is needed. -inf masks a token.
  epsilon: KL budget in nats, 0 (the student) to inf (the teacher on the student's support). A float for every row, or a
      float32 tensor that broadcasts to [...]; a negative or NaN element makes its row a faulty one.
  temperature: > 0, divides both logits.
  Outputs are float32 (token int64, sweeps int32) and never require grad. A row with NaN, +inf or no finite logit gives
      NaN and token -1, and leaves other rows alone. Rows are bitwise independent of batch, order, strides and threads.
  Guarantee: KL(mu || pi_S) <= epsilon (1 + 1e-4) + 1e-7 at the returned beta.
  ValueError: epsilon negative or NaN as a float; temperature not positive and finite; shapes that do not match.
  RuntimeError: a dtype or device the operator does not take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .reference import STUDENT_KINDS, Blend, Sample, Solution, Verification

_Rows = tuple[Tensor, Tensor, "float | Tensor"]


def blend(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: float | Tensor, *, temperature: float = 1.0
) -> Blend:
    """The behavior policy over the whole vocabulary: `Blend(log_probs [..., V], beta [...], kl [...])`.

    `log_probs` is log mu, -inf where mu is 0; `kl` is KL(mu || pi_S) in nats. To draw tokens use `sample`, which
    never writes mu. Arguments, guarantee and errors: see the module.

    >>> behavior = trbext.blend(student_logits, teacher_logits, epsilon=0.02)
    >>> behavior.log_probs.exp().sum(-1)  # 1 in every row
    """
    student, teacher, budget = _as_rows(student_logits, teacher_logits, epsilon, temperature)
    outputs = torch.ops.trb.blend(student, teacher, budget, temperature=temperature)
    return Blend(*_as_batch(outputs, student_logits))


def solve(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: float | Tensor, *, temperature: float = 1.0
) -> Solution:
    """The coefficient alone: `Solution(beta [...], kl [...], sweeps [...] int32)`.

    `sweeps` is how often the row was read. Arguments, guarantee and errors: see the module.
    """
    student, teacher, budget = _as_rows(student_logits, teacher_logits, epsilon, temperature)
    outputs = torch.ops.trb.solve(student, teacher, budget, temperature=temperature)
    return Solution(*_as_batch(outputs, student_logits))


def sample(
    student_logits: Tensor,
    teacher_logits: Tensor,
    epsilon: float | Tensor,
    *,
    uniform: Tensor | None = None,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
) -> Sample:
    """One token per row from mu, by the exact inverse of its cumulative distribution, without materialising mu.

    Returns `Sample(token, log_prob, student_log_prob, teacher_log_prob, beta, kl)`, each [...]; log-probabilities in
    nats under mu, pi_S and pi_T at `temperature` (teacher -inf where it masks the token).

    uniform: float64 [...] in [0, 1), which makes the draw a pure function; outside that range its row is faulty. When
        None, drawn with torch.rand from `generator` (None: the device's default one). Give one or the other.
    Other arguments, guarantee and errors: see the module.

    >>> token = trbext.sample(student_logits, teacher_logits, 0.02, generator=generator).token
    """
    student, teacher, budget = _as_rows(student_logits, teacher_logits, epsilon, temperature)
    shape = student_logits.shape[:-1]
    if uniform is None:
        uniform = torch.rand(shape, dtype=torch.float64, device=student_logits.device, generator=generator)
    elif generator is not None:
        raise ValueError("trbext.sample: give uniform or generator, not both")
    elif uniform.shape != shape:
        raise ValueError(f"trbext.sample: uniform must have shape {list(shape)}, got {list(uniform.shape)}")
    outputs = torch.ops.trb.sample(student, teacher, budget, uniform.reshape(-1), temperature=temperature)
    return Sample(*_as_batch(outputs, student_logits))


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
    """Exact speculative sampling of mu: which of the student's drafts stand, and what stands after them."""
    if isinstance(student_kind, str):
        if student_kind not in STUDENT_KINDS:
            raise ValueError(f"trbext.verify: student_kind must be one of {list(STUDENT_KINDS)}, got {student_kind!r}")
        student_kind = STUDENT_KINDS[student_kind]

    def per_request(value: float | Tensor) -> Tensor:
        if isinstance(value, Tensor):
            return value
        return torch.full((max(len(offsets) - 1, 0),), value, dtype=torch.float32, device=student_logits.device)

    return Verification(
        *torch.ops.trb.verify(
            student_logits,
            teacher_logits,
            draft_tokens,
            offsets,
            per_request(epsilon),
            per_request(temperature),
            accept_uniform,
            draw_uniform,
            student_rows=student_rows,
            teacher_rows=teacher_rows,
            width=width,
            vocab=vocab,
            student_kind=student_kind,
            log_probs=log_probs,
        )
    )


def _as_rows(student_logits: Tensor, teacher_logits: Tensor, epsilon: float | Tensor, temperature: float) -> _Rows:
    """[..., V] as the [N, V] of the operators; a view wherever the strides allow one."""
    if student_logits.dim() < 1 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            "trbext: student_logits and teacher_logits must have the same shape [..., V], got "
            f"{list(student_logits.shape)} and {list(teacher_logits.shape)} "
            "(trbext.vocab aligns vocabularies of different width)"
        )
    shape = student_logits.shape
    if shape[-1] == 0:
        raise ValueError(f"trbext: the vocabulary must have at least one token, got shape {list(shape)}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"trbext: temperature must be positive and finite, got {temperature}")
    if isinstance(epsilon, Tensor):
        try:
            epsilon = epsilon.expand(shape[:-1]).reshape(-1)
        except RuntimeError:
            raise ValueError(
                f"trbext: epsilon must broadcast to {list(shape[:-1])}, got shape {list(epsilon.shape)}"
            ) from None
    elif not epsilon >= 0:  # NaN too
        raise ValueError(f"trbext: epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got {epsilon}")
    if len(shape) == 2:  # a reshape to what is there costs a microsecond, and one row of 32k tokens takes thirty
        return student_logits, teacher_logits, epsilon
    return student_logits.reshape(-1, shape[-1]), teacher_logits.reshape(-1, shape[-1]), epsilon


def _as_batch(outputs: Sequence[Tensor], student_logits: Tensor) -> Sequence[Tensor]:
    """The operators' [N] and [N, V] as the [...] and [..., V] of the logits."""
    if student_logits.dim() == 2:
        return outputs
    batch = student_logits.shape[:-1]
    return [output.reshape(batch + output.shape[1:]) for output in outputs]
