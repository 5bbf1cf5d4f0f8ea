"""Calls the operators `torch.ops.trb`: the trust-region blend of a student and a teacher (arXiv 2605.31159).

For each prefix, with student distribution pi_S and teacher distribution pi_T at the given temperature,

    mu(i) = pi_S(i)^(1-beta) pi_T(i)^beta / Z,    beta = max { beta in [0, 1] : KL(mu || pi_S) <= epsilon }.

The rest holds for `blend`, `solve` and `sample`; `verify` speculates with the same policy and states its own rules.

Outputs are float32 (token int64, sweeps int32) and never require grad. A row with NaN, +inf or no finite logit gives
NaN and token -1, and does not change other rows. Rows are bitwise independent of batch, order, strides and threads.

Guarantee: KL(mu || pi_S) <= epsilon (1 + 1e-4) + 1e-7 at the returned beta, and no larger float32 number has a KL below
epsilon (1 - 3e-4) - 1e-9. How this is checked is in docs/operators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._dtensor import register_where_needed
from .limits import LARGEST_TEMPERATURE, LEAST_TEMPERATURE, STUDENT_KINDS, is_epsilon, not_an_epsilon
from .results import Blend, Sample, Solution, Verification

_Rows = tuple[Tensor, Tensor, "float | Tensor"]


# torch.load(weights_only=True), its default, then reads saved results in every program that imports trbext.
torch.serialization.add_safe_globals([Blend, Solution, Sample, Verification])


def blend(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: float | Tensor, *, temperature: float = 1.0
) -> Blend:
    """Computes the behavior policy over the whole vocabulary.

    To draw tokens, use `sample`, which never writes mu.

    Args:
        student_logits: [..., V], float32, float16 or bfloat16, any strides: raw logits, -inf masks a token.
        teacher_logits: [..., V], as the student's; the dtypes may differ, the device may not.
        epsilon: KL budget in nats, 0 (the student) to inf (the teacher on the student's support). A float for every
            row, or a float32 tensor that broadcasts to [...], of which a negative or NaN element puts its row at fault.
        temperature: 1e-6 to 1e6, divides both logits.

    Returns:
        log mu [..., V] in nats, -inf if mu is 0; beta [...]; KL(mu || pi_S) [...] in nats.

    Raises:
        ValueError: epsilon is negative or NaN as a float, the temperature is out of range, or shapes do not match.
        RuntimeError: The operator does not take a dtype or device.

    Examples:
        >>> behavior = trbext.blend(student_logits, teacher_logits, epsilon=0.02)
        >>> behavior.log_probs.exp().sum(-1)  # 1 in every row
    """
    student, teacher, budget = _as_rows(student_logits, teacher_logits, epsilon, temperature)
    outputs = _overload(torch.ops.trb.blend, budget)(student, teacher, budget, temperature=temperature)
    return Blend(*_as_batch(outputs, student_logits))


def solve(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: float | Tensor, *, temperature: float = 1.0
) -> Solution:
    """Computes only the coefficient of the behavior policy.

    Args:
        student_logits: [..., V], as in `blend`.
        teacher_logits: [..., V], as in `blend`.
        epsilon: KL budget in nats, as in `blend`.
        temperature: 1e-6 to 1e6, divides both logits.

    Returns:
        beta [...]; KL(mu || pi_S) [...] in nats; int32 [...], how often the row was read.

    Raises:
        ValueError: As `blend`.
        RuntimeError: As `blend`.
    """
    student, teacher, budget = _as_rows(student_logits, teacher_logits, epsilon, temperature)
    outputs = _overload(torch.ops.trb.solve, budget)(student, teacher, budget, temperature=temperature)
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
    """Draws one token per row from mu, by the exact inverse of its cumulative distribution, without writing mu.

    Args:
        student_logits: [..., V], as in `blend`.
        teacher_logits: [..., V], as in `blend`.
        epsilon: KL budget in nats, as in `blend`.
        uniform: [...] float64 in [0, 1), which makes the draw a pure function; a value out of this range puts its row
            at fault. None draws it by torch.rand.
        generator: Of `uniform` if that is None; None is the default generator of the device. Give one or the other.
        temperature: 1e-6 to 1e6, divides both logits.

    Returns:
        The token [...] int64; its log-probabilities [...] under mu, pi_S and pi_T in nats at `temperature` (the
        teacher's is -inf if it masks the token); beta [...]; KL(mu || pi_S) [...] in nats.

    Raises:
        ValueError: As `blend`; the shape of `uniform` is not [...]; both `uniform` and `generator` are given.
        RuntimeError: As `blend`.

    Examples:
        >>> token = trbext.sample(student_logits, teacher_logits, 0.02, generator=generator).token
    """
    student, teacher, budget = _as_rows(student_logits, teacher_logits, epsilon, temperature)
    shape = student_logits.shape[:-1]
    if uniform is None:
        uniform = torch.rand(shape, dtype=torch.float64, device=student_logits.device, generator=generator)
    elif generator is not None:
        raise ValueError("trbext.sample: give uniform or generator, not both")
    else:
        _check_uniform(uniform, shape)
    sample_rows = _overload(torch.ops.trb.sample, budget)
    outputs = sample_rows(student, teacher, budget, uniform.reshape(-1), temperature=temperature)
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
        teacher_logits: [R_T, V_T], raw logits; as the student's, with `teacher_rows`.
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
    if isinstance(student_kind, str):
        if student_kind not in STUDENT_KINDS:
            raise ValueError(f"trbext.verify: student_kind must be one of {list(STUDENT_KINDS)}, got {student_kind!r}")
        student_kind = STUDENT_KINDS[student_kind]
    requests = max(offsets.numel() - 1, 0)

    def per_request(value: float | Tensor, check: Callable[[float], None]) -> Tensor:
        if isinstance(value, Tensor):
            return value
        check(value)
        return torch.full((requests,), value, dtype=torch.float32, device=student_logits.device)

    # 2. Call the operator.
    return Verification(
        *torch.ops.trb.verify(
            student_logits,
            teacher_logits,
            draft_tokens,
            offsets,
            per_request(epsilon, _check_epsilon),
            per_request(temperature, _check_temperature),
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


def _overload(operator: Any, epsilon: float | Tensor) -> Any:
    """Returns the overload by name: a tensor of one element would also fit that of a float, and be read from its
    device."""
    return operator.per_row if isinstance(epsilon, Tensor) else operator.default


def _check_uniform(uniform: Tensor, shape: torch.Size) -> None:
    message = f"trbext.sample: uniform must have shape {list(shape)}, got {list(uniform.shape)}"
    if uniform.dim() != len(shape):
        raise ValueError(message)
    if torch.compiler.is_compiling():  # a length may be known at run time only, and the operator checks it there
        for size, wanted in zip(uniform.shape, shape, strict=True):
            torch._check(size == wanted)
    elif uniform.shape != shape:
        raise ValueError(message)


def _check_epsilon(epsilon: float) -> None:
    if not is_epsilon(epsilon):
        raise ValueError(f"trbext: {not_an_epsilon(epsilon)}")


def _check_temperature(temperature: float) -> None:
    if not LEAST_TEMPERATURE <= temperature <= LARGEST_TEMPERATURE:  # NaN too
        raise ValueError(f"trbext: temperature must be between 1e-6 and 1e6, got {temperature}")


def _as_rows(student_logits: Tensor, teacher_logits: Tensor, epsilon: float | Tensor, temperature: float) -> _Rows:
    """Checks the arguments, and lays [..., V] out as the [N, V] of the operators: a view if the strides allow one."""
    register_where_needed()
    if student_logits.dim() < 1 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            "trbext: student_logits and teacher_logits must have the same shape [..., V], got "
            f"{list(student_logits.shape)} and {list(teacher_logits.shape)} "
            "(trbext.vocab aligns vocabularies of different width)"
        )
    shape = student_logits.shape
    if shape[-1] == 0:
        raise ValueError(f"trbext: the vocabulary must have at least one token, got shape {list(shape)}")
    _check_temperature(temperature)
    if isinstance(epsilon, Tensor):
        try:
            epsilon = epsilon.expand(shape[:-1]).reshape(-1)
        except RuntimeError:
            raise ValueError(
                f"trbext: epsilon must broadcast to {list(shape[:-1])}, got shape {list(epsilon.shape)}"
            ) from None
    else:
        _check_epsilon(epsilon)
    if len(shape) == 2:  # a reshape to the same shape costs a microsecond, and one row of 32k tokens takes thirty
        return student_logits, teacher_logits, epsilon
    return student_logits.reshape(-1, shape[-1]), teacher_logits.reshape(-1, shape[-1]), epsilon


def _as_batch(outputs: Sequence[Tensor], student_logits: Tensor) -> Sequence[Tensor]:
    """Lays the operators' [N] and [N, V] out as the [...] and [..., V] of the logits."""
    if student_logits.dim() == 2:
        return outputs
    batch = student_logits.shape[:-1]
    return [output.reshape(batch + output.shape[1:]) for output in outputs]
