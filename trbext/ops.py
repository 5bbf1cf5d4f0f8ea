"""Calls the operators `torch.ops.trb`: the trust-region blend of a student and a teacher (arXiv 2605.31159).

For each prefix, with student distribution pi_S and teacher distribution pi_T at the given temperature,

    mu(i) = pi_S(i)^(1-beta) pi_T(i)^beta / Z,    beta = max { beta in [0, 1] : KL(mu || pi_S) <= epsilon }.

The rest holds for `blend`, `solve` and `sample`; `verify` speculates with the same policy and states its own rules.

The teacher may also be a `TopK`, of which only k tokens per row are known. Outputs are float32 (token int64, sweeps
int32) and never require grad. A row with NaN, +inf or no finite logit gives NaN and token -1, and does not change other
rows. Rows are bitwise independent of batch, order, strides and threads.

Guarantee: KL(mu || pi_S) <= epsilon (1 + 1e-4) + 1e-7 at the returned beta, and no larger float32 number has a KL below
epsilon (1 - 3e-4) - 1e-9. How this is checked is in docs/operators.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._operators.arguments import (
    as_batch,
    as_rows,
    check_epsilon,
    check_temperature,
    check_tensors,
    check_uniform,
    code_of_kind,
    overload,
    teacher_tensors,
)
from ._operators.dtensor import register_where_needed
from .limits import in_float32
from .results import Blend, Sample, Solution, Verification
from .top_k import TopK

# torch.load(weights_only=True), its default, then reads saved results in every program that imports trbext.
torch.serialization.add_safe_globals([Blend, Solution, Sample, Verification, TopK])


def blend(
    student_logits: Tensor, teacher_logits: Tensor | TopK, epsilon: float | Tensor, *, temperature: float = 1.0
) -> Blend:
    """Computes the behavior policy over the whole vocabulary.

    To draw tokens, use `sample`, which never writes mu.

    Args:
        student_logits: [..., V], float32, float16 or bfloat16, any strides: raw logits, -inf masks a token.
        teacher_logits: [..., V], as the student's; the dtypes may differ, the device may not. Or a `TopK` of [..., k]:
            log-probabilities of k tokens, already at the temperature, the rest of whose mass is the student's.
        epsilon: KL budget in nats, 0 (the student) to inf (the teacher on the student's support). A float for every
            row, or a float32 tensor that broadcasts to [...], of which a negative or NaN element puts its row at fault.
        temperature: 1e-6 to 1e6, divides both models' logits.

    Returns:
        log mu [..., V] in nats, -inf if mu is 0; beta [...]; KL(mu || pi_S) [...] in nats.

    Raises:
        ValueError: epsilon is negative or NaN as a float, the temperature is out of range, or shapes do not match.
        RuntimeError: The operator does not take a dtype or device.

    Examples:
        >>> behavior = trbext.blend(student_logits, teacher_logits, epsilon=0.02)
        >>> behavior.log_probs.exp().sum(-1)  # 1 in every row
    """
    student, teacher, budget = as_rows(student_logits, teacher_logits, epsilon, temperature)
    operator = torch.ops.trb.blend if len(teacher) == 1 else torch.ops.trb.blend_top_k
    outputs = overload(operator, budget)(student, *teacher, budget, temperature=temperature)
    return Blend(*as_batch(outputs, student_logits))


def solve(
    student_logits: Tensor, teacher_logits: Tensor | TopK, epsilon: float | Tensor, *, temperature: float = 1.0
) -> Solution:
    """Computes only the coefficient of the behavior policy.

    Args:
        student_logits: [..., V], as in `blend`.
        teacher_logits: [..., V], as in `blend`.
        epsilon: KL budget in nats, as in `blend`.
        temperature: 1e-6 to 1e6, divides both models' logits.

    Returns:
        beta [...]; KL(mu || pi_S) [...] in nats; int32 [...], how often the row was read.

    Raises:
        ValueError: As `blend`.
        RuntimeError: As `blend`.
    """
    student, teacher, budget = as_rows(student_logits, teacher_logits, epsilon, temperature)
    operator = torch.ops.trb.solve if len(teacher) == 1 else torch.ops.trb.solve_top_k
    outputs = overload(operator, budget)(student, *teacher, budget, temperature=temperature)
    return Solution(*as_batch(outputs, student_logits))


def sample(
    student_logits: Tensor,
    teacher_logits: Tensor | TopK,
    epsilon: float | Tensor,
    *,
    uniform: Tensor | None = None,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
) -> Sample:
    """Draws one token per row from mu, by the exact inverse of its cumulative distribution, without writing mu.

    Args:
        student_logits: [..., V], as in `blend`.
        teacher_logits: [..., V], as in `blend`.
        epsilon: KL budget in nats, as in `blend`.
        uniform: [...] float64 in [0, 1), which makes the draw a pure function; a value out of this range puts its row
            at fault. None draws it by torch.rand, which DTensors do not allow.
        generator: Of `uniform` if that is None; None is the default generator of the device. Give one or the other.
        temperature: 1e-6 to 1e6, divides both models' logits.

    Returns:
        The token [...] int64; its log-probabilities [...] under mu, pi_S and pi_T in nats at `temperature` (the
        teacher's is -inf if it masks the token); beta [...]; KL(mu || pi_S) [...] in nats.

    Raises:
        ValueError: As `blend`; the shape of `uniform` is not [...]; both `uniform` and `generator` are given.
        RuntimeError: As `blend`.

    Examples:
        >>> token = trbext.sample(student_logits, teacher_logits, 0.02, generator=generator).token
    """
    student, teacher, budget = as_rows(student_logits, teacher_logits, epsilon, temperature)
    shape = student_logits.shape[:-1]
    if uniform is None:
        if hasattr(student_logits, "placements"):  # a DTensor, of whose rows each rank would draw its own numbers
            raise ValueError("trbext.sample: uniform must be given if the logits are DTensors, got None")
        # With generator=None torch.compile takes static shapes only.
        given: dict[str, Any] = {} if generator is None else {"generator": generator}
        uniform = torch.rand(shape, dtype=torch.float64, device=student_logits.device, **given)
    elif generator is not None:
        raise ValueError("trbext.sample: give uniform or generator, not both")
    else:
        check_uniform(uniform, shape)
    operator = torch.ops.trb.sample if len(teacher) == 1 else torch.ops.trb.sample_top_k
    outputs = overload(operator, budget)(student, *teacher, budget, uniform.reshape(-1), temperature=temperature)
    return Sample(*as_batch(outputs, student_logits))


def verify(
    student_logits: Tensor,
    teacher_logits: Tensor | TopK,
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
    """Verifies drafts of the student in one pass of the teacher: exact speculative sampling of mu.

    The student has drafted, and one pass of the teacher has scored. There are B requests of any number of rows each, N
    rows in all. Within a request, rows are taken in order, with the beta of each by the usual solve. A draft x is
    accepted if u pi_S(x) < mu(x). The first rejected draft is replaced by a draw from max(mu - pi_S, 0), and the
    request stops there. It also stops at a direct row (draft -1), whose token is drawn from mu. The tokens that come
    out follow mu exactly if the drafts were drawn from pi_S and all uniform numbers are independent (method: Leviathan
    et al., arXiv 2211.17192). There is no bonus token of the teacher, which would not follow mu. For a token after all
    drafts, let the student take a further step and add its row as a direct one.

    Faults in the data never raise. If a request meets one before it stops, its `emitted` is -1, the tokens before the
    fault stay and `accepted` counts them, beta and kl of that row are NaN, and other requests are what they would be
    without it. Faults of a row are: NaN, +inf or no finite logit (probabilities: NaN, negative, +inf or all 0); a draft
    or a row index out of range; a uniform number that it needs outside [0, 1). Faults of a request that has a row are:
    a negative or NaN epsilon; a temperature outside [1e-6, 1e6]; more rows than `width`; offsets that are negative,
    decreasing, or beyond N.

    The results of a request are bitwise the same in any batch, order and layout, with any number of threads. beta and
    kl are those of `solve` at the same float32 epsilon and temperature. Nothing of size [N, V] is allocated, and
    nothing waits for CUDA. `torch.ops.trb.verify.out` writes to given outputs instead (tokens int64 or int32).

    Args:
        student_logits: [R_S, V_S], float32, float16 or bfloat16, any strides. There may be more rows than N, in any
            order, if `student_rows` says which are meant.
        teacher_logits: [R_T, V_T], raw logits; as the student's, with `teacher_rows`. Or a `TopK` of [R_T, k], as in
            `blend`, whose faults are faults of a row.
        draft_tokens: [N] int32 or int64, each in [0, vocab), or -1 for no draft.
        offsets: [B + 1] int32 or int64, from 0, non-decreasing, at most N: the rows offsets[r] .. offsets[r + 1] - 1
            are those of request r, which may have none. Rows of no request are padding.
        epsilon: KL budget in nats, a float for all requests or float32 [B] on the device.
        temperature: 1e-6 to 1e6, a float for all requests or float32 [B] on the device.
        accept_uniform: [N] float64 in [0, 1), for the acceptance of the draft of each row.
        draw_uniform: [N] float64 in [0, 1), for the token that is drawn if a row has no draft or it is rejected. Only
            that of the row at which a request stops is used.
        student_rows: [N] int32 or int64, the row of `student_logits` that each row is; None is 0 .. N - 1.
        teacher_rows: [N] int32 or int64, likewise of `teacher_logits`.
        width: Columns of the returned tokens, at least the rows of any request.
        vocab: Columns that count; tokens from there on have probability 0 in both models. 0: those that both have.
        student_kind: 0 or "logits"; 1 or "probabilities" at the temperature, as engines keep them, 0 for tokens that
            the student never draws; 2 or "scaled_logits", already divided by the temperature.
        log_probs: Whether log-probabilities are returned.

    Returns:
        tokens [B, width] int64, padded with -1; emitted [B] int32, of which `accepted` [B] int32 are drafts; beta [N]
        and kl [N] in nats, NaN for padding and for rows after the stop; log_probs [B, width, 3] in nats, of each
        emitted token under student, teacher and behavior policy, NaN past them, [0, 0, 3] unless wanted.

    Raises:
        ValueError: epsilon as a float is negative or NaN, temperature as a float is out of range, or the name of a
            kind is unknown.
        RuntimeError: Shapes, dtypes or devices do not fit.

    Examples:
        >>> kept = trbext.verify(
        ...     student_logits, teacher_logits, drafts, offsets, 0.02, accept_uniform=u, draw_uniform=v, width=4
        ... )
        >>> kept.tokens[r, : kept.emitted[r]]
    """
    # 1. Check the arguments that the operator does not check, and spread single numbers over the requests.
    register_where_needed()
    student_kind = code_of_kind(student_kind)
    check_tensors(student_logits=student_logits, draft_tokens=draft_tokens, offsets=offsets)
    check_tensors(accept_uniform=accept_uniform, draw_uniform=draw_uniform)
    rows = {"student_rows": student_rows, "teacher_rows": teacher_rows}
    check_tensors(**{name: values for name, values in rows.items() if values is not None})
    teacher = teacher_tensors(teacher_logits)
    requests = max(offsets.numel() - 1, 0)

    def per_request(value: float | Tensor, check: Callable[[float], None]) -> Tensor:
        if isinstance(value, Tensor):
            return value
        check(value)
        return student_logits.new_full((requests,), in_float32(value), dtype=torch.float32)  # a DTensor if they are

    # 2. Call the operator of that kind of teacher.
    operator = torch.ops.trb.verify if len(teacher) == 1 else torch.ops.trb.verify_top_k
    return Verification(
        *operator(
            student_logits,
            *teacher,
            draft_tokens,
            offsets,
            per_request(epsilon, check_epsilon),
            per_request(temperature, check_temperature),
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
