"""Typed functions over `torch.ops.trb`: the trust-region blend of a student and a teacher (arXiv 2605.31159).

For each prefix, with student distribution pi_S and teacher distribution pi_T at the given temperature,

    mu(i) = pi_S(i)^(1-beta) pi_T(i)^beta / Z,    beta = max { beta in [0, 1] : KL(mu || pi_S) <= epsilon }.

Shared by blend, solve and sample (verify, which speculates with the same policy, states its own):
  student_logits, teacher_logits: [..., V], float32, float16 or bfloat16 (the two may differ), any strides, same device.
      Raw logits: no log_softmax is needed. -inf masks a token.
  epsilon: KL budget in nats, 0 (the student) to inf (the teacher on the student's support). A float for every row, or a
      float32 tensor that broadcasts to [...]; a negative or NaN element makes its row a faulty one.
  temperature: 1e-6 to 1e6, divides both logits.
  Outputs are float32 (token int64, sweeps int32) and never require grad. A row with NaN, +inf or no finite logit gives
      NaN and token -1, and leaves other rows alone. Rows are bitwise independent of batch, order, strides and threads.
  Guarantee: KL(mu || pi_S) <= epsilon (1 + 1e-4) + 1e-7 at the returned beta, and no larger float32 number has a KL
      below epsilon (1 - 3e-4) - 1e-9. How it is checked: docs/operators.md.
  ValueError: epsilon negative or NaN as a float; temperature out of its range; shapes that do not match.
  RuntimeError: a dtype or device the operator does not take.
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


# So that torch.load(weights_only=True), its default, reads saved results wherever trbext is imported.
torch.serialization.add_safe_globals([Blend, Solution, Sample, Verification])


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
    outputs = _overload(torch.ops.trb.blend, budget)(student, teacher, budget, temperature=temperature)
    return Blend(*_as_batch(outputs, student_logits))


def solve(
    student_logits: Tensor, teacher_logits: Tensor, epsilon: float | Tensor, *, temperature: float = 1.0
) -> Solution:
    """The coefficient alone: `Solution(beta [...], kl [...], sweeps [...] int32)`.

    `sweeps` is how often the row was read. Arguments, guarantee and errors: see the module.
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
    """Exact speculative sampling of mu: the student has drafted, one pass of the teacher has scored, this decides.

    B requests of any number of rows each, N rows in all. Within a request rows are taken in order, beta of each by the
    usual solve: a drafted token x stands if u pi_S(x) < mu(x). The first that does not is replaced by a draw from
    max(mu - pi_S, 0), and the request stops there; so it does at a direct row (draft -1), whose token is drawn from mu.
    The tokens that come out follow mu exactly if the drafts were drawn from pi_S and all uniforms are independent
    (method: Leviathan et al., arXiv 2211.17192). There is no bonus token from the teacher alone, which would not
    follow mu: for one, let the student take a further step and add its row as a direct one.

    student_logits: [R_S, V_S], teacher_logits: [R_T, V_T]: float32, float16 or bfloat16, any strides, only read. More
        rows than N, in any order, where student_rows and teacher_rows say which are meant.
    draft_tokens: int32 or int64 [N], each in [0, vocab), or -1: no draft.
    offsets: int32 or int64 [B + 1], from 0, non-decreasing, at most N: rows offsets[r] .. offsets[r + 1] - 1 are of
        request r, which may have none. Rows of no request are padding.
    epsilon: KL budget in nats and temperature, a float for all requests or float32 [B] on the device.
    accept_uniform, draw_uniform: float64 [N] in [0, 1): of a row's draft, and of the token drawn where it has none or
        it is refused. Only the second of the row where a request stops is used.
    student_rows, teacher_rows: int32 or int64 [N], the row of the logits that each row is; None: 0 .. N - 1.
    width: columns of the tokens returned, at least the rows of any request.
    vocab: columns that count; tokens from there on have probability 0 in both. 0: those that both models have.
    student_kind: 0 or "logits"; 1 or "probabilities" at the temperature, as engines keep them, 0 where the student
        never draws a token; 2 or "scaled_logits", divided by the temperature already. The teacher's are raw logits.
    log_probs: whether they are wanted.

    Returns `Verification(tokens [B, width] int64 padded with -1, emitted [B] int32, accepted [B] int32, beta [N],
    kl [N], log_probs [B, width, 3])`: `accepted` of the `emitted` tokens are drafts. beta and kl are NaN for padding
    and for rows after the stop. log_probs, in nats, are the student's, the teacher's and the behavior policy's of each
    emitted token, NaN past them, and of shape [0, 0, 3] unless wanted.

    Faults in the data never raise: where a request meets one before it stops, its `emitted` is -1, the tokens before it
    stay and `accepted` counts them, beta and kl of that row are NaN, and other requests are what they would be without.
    They are: a row with NaN, +inf or no finite logit (probabilities: NaN, negative, +inf or all 0); a draft or a row
    index out of range; a uniform it needs outside [0, 1); and of the request itself, if it has a row: a negative or NaN
    epsilon, a temperature outside [1e-6, 1e6], more rows than `width`; and offsets that are negative,
    decreasing, or beyond N.

    A request's results are bitwise the same in any batch, order and layout, with any number of threads. beta and kl
    are those of `solve` at the same float32 epsilon and temperature. Nothing of size [N, V] is allocated, CUDA is not
    waited for. `torch.ops.trb.verify.out` writes to given outputs instead (tokens int64 or int32).

    ValueError: epsilon negative or NaN as a float; temperature as a float out of its range; an unknown name of a
    kind. RuntimeError: shapes, dtypes or devices that do not fit.

    >>> kept = trbext.verify(
    ...     student_logits, teacher_logits, drafts, offsets, 0.02, accept_uniform=u, draw_uniform=v, width=4
    ... )
    >>> kept.tokens[r, : kept.emitted[r]]
    """
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
    """By name: a tensor of one element would fit the overload of a float too, by being read from its device."""
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
    """[..., V] as the [N, V] of the operators; a view wherever the strides allow one."""
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
    if len(shape) == 2:  # a reshape to what is there costs a microsecond, and one row of 32k tokens takes thirty
        return student_logits, teacher_logits, epsilon
    return student_logits.reshape(-1, shape[-1]), teacher_logits.reshape(-1, shape[-1]), epsilon


def _as_batch(outputs: Sequence[Tensor], student_logits: Tensor) -> Sequence[Tensor]:
    """The operators' [N] and [N, V] as the [...] and [..., V] of the logits."""
    if student_logits.dim() == 2:
        return outputs
    batch = student_logits.shape[:-1]
    return [output.reshape(batch + output.shape[1:]) for output in outputs]
