"""Computes the reverse KL from student to teacher at every prefix, and the losses that replace it.

The reverse KL is taken over the whole vocabulary, on the student's top k tokens, or from the sampled token only. It is
replaced by cross-entropy in supervised steps, and has another target in Veto.

With pi_S and pi_T the softmaxes of the logits divided by the temperature, at one prefix

    KL(pi_S || pi_T) = sum_a pi_S(a) (log pi_S(a) - log pi_T(a)).

It is a sum over actions, so no importance weight is needed, whichever policy wrote the prefix (arXiv 2605.31159). The
estimate from one sampled token needs a weight.

Logits are recomputed from hidden states a chunk of prefixes at a time, in the backward pass as well, so that no
[prefixes, V] tensor outlives its chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .._operators.arguments import check_temperature, check_tensors
from ..rollout.policy import whole_number

if TYPE_CHECKING:
    from ..models.lm_head import Head, LMHead  # which needs TRL
    from ..vocab import Alignment

# One [prefixes, V] float32 tensor of a chunk takes 128 MiB; about eight of them live at once.
CHUNK_ELEMENTS = 2**25


def reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, top_k: int | None = None, temperature: float = 1.0
) -> Tensor:
    """Computes KL(pi_S || pi_T) in nats at each prefix, differentiable in both arguments.

    Args:
        student_logits: `[..., V]`, any float dtype; half precision is computed in float32. -inf excludes a token.
        teacher_logits: `[..., V]`, likewise.
        top_k: None sums over the vocabulary. k sums over k + 1 outcomes: the student's k most probable tokens and "any
            other token", whose mass under each model is exact. By the data-processing inequality this is a lower bound
            of the full KL, zero and stationary if the student equals the teacher. The bare partial sum over the k
            tokens is not stationary there: its gradient is that of their total mass, which then escapes the top k.
            Renormalizing both models on the k tokens prevents this, but ignores how much mass the others have.
        temperature: 1e-6 to 1e6, divides both logits.

    Returns:
        `[...]` nats, float32 (float64 for float64 logits). If the teacher excludes tokens that the student does not,
        the KL is infinite. With C the tokens that both allow, KL(pi_S(.|C) || pi_T) - log pi_S(C) replaces it: it is
        the same if C is everything, finite, zero only at equality, and moves mass off the excluded tokens. Without any
        common token the result is inf, with gradient 0.

    Raises:
        TypeError: Logits are no tensors.
        ValueError: The shapes differ, logits are no floating-point numbers, `top_k` is no whole number from 1, or the
            temperature is outside 1e-6 to 1e6.
    """
    _check_logits(student_logits, teacher_logits)
    if top_k is not None:
        whole_number("top_k", top_k, 1)
    student, teacher = tempered(student_logits, temperature), tempered(teacher_logits, temperature)
    if top_k is not None and top_k < student.shape[-1]:
        top = student.detach().topk(top_k).indices
        student, teacher = top_and_rest(student, top), top_and_rest(teacher, top)
    return kl_of_logits(student, teacher)


def _check_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    check_tensors(student_logits=student_logits, teacher_logits=teacher_logits)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student_logits and teacher_logits must have one shape [..., V], got {list(student_logits.shape)} and "
            f"{list(teacher_logits.shape)}"
        )
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if not logits.is_floating_point():
            raise ValueError(f"{name} must be floating-point, got {logits.dtype}")


def _check_of_prefixes(logits: Tensor, **values: Tensor) -> None:
    check_tensors(**values)
    for name, value in values.items():
        if value.shape != logits.shape[:-1]:
            raise ValueError(f"{name} must have shape {list(logits.shape[:-1])}, got {list(value.shape)}")


def kl_of_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(pi_S || pi_T) `[...]` in nats of logits `[..., N]` over any N outcomes, as `reverse_kl` says."""
    student, teacher, common = with_common_tokens(student, teacher)
    some = common.any(-1, keepdim=True)
    inside = student.masked_fill(~common & some, -torch.inf)
    log_inside_mass = inside.logsumexp(-1) - student.logsumexp(-1)  # log pi_S(C); exactly 0 if C is everything
    log_student = inside.log_softmax(-1)
    gap = torch.where(common, log_student - teacher.log_softmax(-1), 0.0)
    kl = (log_student.exp() * gap).sum(-1) - log_inside_mass
    return torch.where(some[..., 0], kl, torch.inf)


def with_common_tokens(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns both logits `[..., N]`, and which outcomes both models allow, bool.

    Rows that have none become 0: a softmax over nothing has the gradient NaN, also where its value is not used.
    """
    common = (student > -torch.inf) & (teacher > -torch.inf)
    none = ~common.any(-1, keepdim=True)
    if teacher.requires_grad:
        teacher = teacher.masked_fill(none, 0.0)
    return student.masked_fill(none, 0.0), teacher, common


def sampled_reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    token: Tensor,
    log_weight: Tensor,
    *,
    weight_cap: float | None = None,
    log_ratio_cap: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Estimates `reverse_kl` and its gradient without bias from one token a ~ mu at each prefix.

    With w = pi_S(a) / mu(a), a constant, and g = log pi_S(a) - log pi_T(a), the value is w g (the estimator k1) and the
    gradient w g grad log pi_S(a), which is that of w g^2 / 2 (k2). Differentiating k1 itself would add
    w grad log pi_S(a), which is zero in the mean and only noise.

    Args:
        student_logits: `[..., V]`, as in `reverse_kl`, whose replacement for excluded tokens is estimated likewise.
        teacher_logits: `[..., V]`, as in `reverse_kl`.
        token: `[...]` int64, drawn from the behavior policy mu.
        log_weight: `[...]` log pi_S(token) - log mu(token) when it was drawn, nats; 0 for rollouts of the student.
        weight_cap: The largest w, which biases the estimate; None sets no limit.
        log_ratio_cap: The largest |g| in the value and in the gradient, which biases both; None sets no limit.
        temperature: 1e-6 to 1e6, divides both logits.

    Returns:
        `[...]` nats.

    Raises:
        TypeError: As `reverse_kl`.
        ValueError: As `reverse_kl`, or the shape of `token` or `log_weight` is not [...].
    """
    _check_logits(student_logits, teacher_logits)
    _check_of_prefixes(student_logits, token=token, log_weight=log_weight)
    student, teacher = tempered(student_logits, temperature), tempered(teacher_logits, temperature)
    student, teacher, common = with_common_tokens(student, teacher)
    some = common.any(-1, keepdim=True)
    inside = student.masked_fill(~common & some, -torch.inf)
    log_inside_mass = inside.logsumexp(-1) - student.logsumexp(-1)
    at = token[..., None]
    allowed = common.gather(-1, at)[..., 0]
    weight = (log_weight - log_inside_mass.detach()).exp().to(student.dtype)
    weight = torch.where(allowed, weight if weight_cap is None else weight.clamp(max=weight_cap), 0.0)
    log_ratio = inside.log_softmax(-1) - teacher.log_softmax(-1)
    gap = torch.where(allowed, log_ratio.masked_fill(~common, 0.0).gather(-1, at)[..., 0], 0.0)
    if log_ratio_cap is None:
        k2 = weight * gap**2 / 2
        estimate = weight * gap.detach() + (k2 - k2.detach()) - log_inside_mass
    else:
        signal = weight * gap.detach().clamp(-log_ratio_cap, log_ratio_cap)
        estimate = signal * (1 + gap - gap.detach()) - log_inside_mass
    return torch.where(some[..., 0], estimate, torch.inf)


def cross_entropy(student_logits: Tensor, token: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Computes -log pi_S(token) at each prefix: supervision by tokens that another model wrote.

    Args:
        student_logits: `[..., V]`, any float dtype.
        token: `[...]` int64.
        temperature: 1e-6 to 1e6, divides the logits.

    Returns:
        `[...]` nats.

    Raises:
        TypeError: An argument is no tensor.
        ValueError: The logits are no floating-point numbers, the shape of `token` is not [...], or the temperature is
            outside 1e-6 to 1e6.
    """
    _check_logits(student_logits, student_logits)
    _check_of_prefixes(student_logits, token=token)
    return -tempered(student_logits, temperature).log_softmax(-1).gather(-1, token[..., None])[..., 0]


def veto_target(student_logits: Tensor, teacher_logits: Tensor, exponent: float) -> Tensor:
    """Returns the logits of Veto's target Q ~ pi_T pi_S^b (arXiv 2601.07155), to be used as the teacher's in a loss.

    The student's part is a constant, as a target is: KL(pi_S || Q) then has the gradient
    sum grad pi_S ((1 - b) log pi_S - log pi_T). If Q were differentiated too, it would not be the KL to a fixed
    distribution. Whether the authors' own code detaches it was not known when this was written.

    Args:
        student_logits: `[..., V]`, any float dtype.
        teacher_logits: `[..., V]`.
        exponent: b >= 0; 0 returns the teacher.

    Returns:
        `[..., V]`.
    """
    return teacher_logits if exponent == 0 else teacher_logits + exponent * student_logits.detach()


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns the entropy [...] in nats of the softmax of `logits` [..., V] divided by the temperature."""
    log_probs = tempered(logits, temperature).log_softmax(-1)
    return -(log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0.0)).sum(-1)


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """`logits` divided by the temperature, which is checked, in float32 or wider."""
    check_temperature(temperature)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def top_and_rest(logits: Tensor, top: Tensor) -> Tensor:
    """Returns the logits [..., k + 1] of the tokens `top` [..., k], and of all other tokens taken together."""
    others = logits.scatter(-1, top, -torch.inf)
    none = (others == -torch.inf).all(-1, keepdim=True)  # their logsumexp has the gradient NaN
    rest = others.masked_fill_(none, 0.0).logsumexp(-1, keepdim=True).masked_fill(none, -torch.inf)
    return torch.cat([logits.gather(-1, top), rest], -1)


class TeacherTerms(NamedTuple):
    """The teacher's terms at each of N prefixes. `[N]` each, nats, no gradient."""

    log_prob: Tensor  # log pi_T of the sampled token; -inf if the teacher excludes it
    entropy: Tensor


class PrefixTerms(NamedTuple):
    """The loss and its companions at each of N prefixes. `[N]` each, nats; only `loss` carries a gradient."""

    reverse_kl: Tensor
    student_entropy: Tensor
    teacher: TeacherTerms
    loss: Tensor  # `reverse_kl` itself unless another loss was asked for
    student_log_prob: Tensor | None = None  # log pi_S of the sampled token, if it was asked for


# (student_logits [n, V], teacher_logits [n, V], token [n], log_weight [n], accepted [n]) -> loss [n]
TokenLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def teacher_terms(
    teacher_hidden: Tensor, head: Head, tokens: Tensor, alignment: Alignment, *, temperature: float = 1.0
) -> TeacherTerms:
    """Returns the teacher's log-probability of the sampled tokens, and its entropy, at N prefixes.

    Args:
        teacher_hidden: [N, H], its last hidden states.
        head: The teacher's.
        tokens: [N] int64, the sampled tokens.
        alignment: Cuts the logits to the common width and merges EOS ids.
        temperature: Divides the logits.
    """

    def terms(hidden: Tensor, token: Tensor) -> tuple[Tensor, ...]:
        return _teacher_terms(alignment.canonical(head(hidden), temperature), token, temperature)

    with torch.no_grad():
        tokens = emitted_as_stop(tokens, alignment)
        return TeacherTerms(*in_chunks(terms, head.vocabulary, teacher_hidden, tokens))


def chunked_reverse_kl(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    student_head: LMHead,
    teacher_head: Head,
    tokens: Tensor,
    alignment: Alignment,
    *,
    top_k: int | None = None,
    temperature: float = 1.0,
    loss: TokenLoss | None = None,
    log_weight: Tensor | None = None,
    accepted: Tensor | None = None,
    student_log_probs: bool = False,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> PrefixTerms:
    """Computes `reverse_kl` at N prefixes from hidden states, over the vocabulary that both models share.

    Args:
        student_hidden: [N, H_S], the student's last hidden states.
        teacher_hidden: [N, H_T], the teacher's.
        student_head: Turns the student's states into logits.
        teacher_head: Turns the teacher's states into logits.
        tokens: [N] int64, the token sampled at each prefix.
        alignment: Cuts both models to the common width and merges their EOS ids.
        top_k: As in `reverse_kl`.
        temperature: Divides the logits of both models.
        loss: Is minimized instead, a function of the aligned logits; the reverse KL then has no gradient.
        log_weight: [N] nats, passed to `loss`; None is zeros.
        accepted: [N] bool, the labels of the tokens, passed to `loss`; None is all True.
        student_log_probs: Whether log pi_S of the tokens is returned, for which each chunk is read once more.
        chunk_elements: Logits per chunk and model, which change the memory but not the result.
    """

    def terms(
        student_part: Tensor, teacher_part: Tensor, token: Tensor, weight: Tensor, label: Tensor
    ) -> tuple[Tensor, ...]:
        student_logits = alignment.canonical(student_head(student_part), temperature)
        with torch.no_grad():
            teacher_logits = alignment.canonical(teacher_head(teacher_part), temperature)
            student_entropy = entropy(student_logits, temperature)
            log_prob, teacher_entropy = _teacher_terms(teacher_logits, token, temperature)
            of_student = (-cross_entropy(student_logits, token, temperature=temperature),) if student_log_probs else ()
        with torch.set_grad_enabled(torch.is_grad_enabled() and loss is None):
            kl = reverse_kl(student_logits, teacher_logits, top_k=top_k, temperature=temperature)
        minimized = kl if loss is None else loss(student_logits, teacher_logits, token, weight, label)
        return kl, student_entropy, log_prob, teacher_entropy, minimized, *of_student

    vocabulary = max(student_head.vocabulary, teacher_head.vocabulary)
    tokens = emitted_as_stop(tokens, alignment)
    weights = torch.zeros(tokens.shape, device=tokens.device) if log_weight is None else log_weight
    labels = torch.ones_like(tokens, dtype=torch.bool) if accepted is None else accepted
    kl, student_entropy, log_prob, teacher_entropy, minimized, *of_student = in_chunks(
        terms, vocabulary, student_hidden, teacher_hidden, tokens, weights, labels, chunk_elements=chunk_elements
    )
    teacher = TeacherTerms(log_prob, teacher_entropy)
    return PrefixTerms(kl, student_entropy, teacher, minimized, *of_student)


def _teacher_terms(logits: Tensor, token: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    log_probs = tempered(logits, temperature).log_softmax(-1)
    return log_probs.gather(-1, token[:, None])[:, 0], entropy(logits, temperature)


def emitted_as_stop(tokens: Tensor, alignment: Alignment) -> Tensor:
    """Replaces every EOS id in `tokens` by `stop`, which has their merged mass: another engine may stop with any."""
    if alignment.is_slice:
        return tokens
    return torch.where(torch.isin(tokens, tokens.new_tensor(alignment.duplicates)), alignment.stop, tokens)


def in_chunks(
    terms: Callable[..., tuple[Tensor, ...]], vocabulary: int, *rows: Tensor, chunk_elements: int = CHUNK_ELEMENTS
) -> tuple[Tensor, ...]:
    """Computes `terms` of N rows in chunks of rows, and again in the backward pass."""
    size = max(1, chunk_elements // vocabulary)
    parts = []
    for start in range(0, max(1, len(rows[0])), size):  # one empty chunk when N = 0, which keeps the graph for DDP
        part = [row[start : start + size] for row in rows]
        if torch.is_grad_enabled():
            parts.append(checkpoint(terms, *part, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(terms(*part))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
