"""Reverse KL from student to teacher at every prefix: over the whole vocabulary, or on the student's top k tokens.

With pi_S and pi_T the softmaxes of the logits divided by the temperature, at one prefix

    KL(pi_S || pi_T) = sum_a pi_S(a) (log pi_S(a) - log pi_T(a)).

It is summed over actions, so no importance weight is needed whichever policy wrote the prefix (arXiv 2605.31159).

Logits are recomputed from hidden states a chunk of prefixes at a time, in the backward pass as well, so that no
[prefixes, V] tensor outlives its chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .vocab import Alignment

# One [prefixes, V] float32 tensor of a chunk takes 128 MiB; about eight of them live at once.
CHUNK_ELEMENTS = 2**25


def reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, top_k: int | None = None, temperature: float = 1.0
) -> Tensor:
    """KL(pi_S || pi_T) in nats at each prefix, differentiable in both arguments.

    Args:
        student_logits, teacher_logits: `[..., V]`, any float dtype; half precision is computed in float32. -inf
            excludes a token.
        top_k: None sums over the vocabulary. k sums over k + 1 outcomes: the student's k most probable tokens and "any
            other token", whose mass under each model is exact. By the data-processing inequality this is a lower bound
            of the full KL, zero and stationary where the student equals the teacher. The bare partial sum over the k
            tokens is not: there its gradient is that of their total mass, which then escapes the top k. Renormalising
            both models on the k tokens stops that but never sees how much mass lies elsewhere.
        temperature: divides both logits.

    Returns:
        `[...]`, float32 (float64 for float64 logits). Where the teacher excludes tokens the student does not, the KL is
        infinite; with C the tokens both allow, KL(pi_S(.|C) || pi_T) - log pi_S(C) stands in for it: the same when C is
        everything, finite, zero only at equality, and pushing mass off the excluded tokens. Without any common token
        the result is inf, with gradient 0.
    """
    student, teacher = _tempered(student_logits, temperature), _tempered(teacher_logits, temperature)
    if top_k is not None and top_k < student.shape[-1]:
        top = student.detach().topk(top_k).indices
        student, teacher = _top_and_rest(student, top), _top_and_rest(teacher, top)
    common = (student > -torch.inf) & (teacher > -torch.inf)
    inside = student.masked_fill(~common, -torch.inf)  # also stops the NaN gradient of a row without common tokens
    log_inside_mass = inside.logsumexp(-1) - student.logsumexp(-1)  # log pi_S(C); exactly 0 where C is everything
    log_student = inside.log_softmax(-1)
    gap = torch.where(common, log_student - teacher.log_softmax(-1), 0.0)
    kl = (log_student.exp() * gap).sum(-1) - log_inside_mass
    return torch.where(common.any(-1), kl, torch.inf)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of the softmax of `logits` [..., V] divided by the temperature; [...]."""
    log_probs = _tempered(logits, temperature).log_softmax(-1)
    return -(log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0.0)).sum(-1)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _top_and_rest(logits: Tensor, top: Tensor) -> Tensor:
    """[..., k + 1] logits of the tokens `top` and of all the others taken together."""
    rest = logits.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, top), rest], -1)


@dataclass(frozen=True)
class LMHead:
    """How a causal language model turns hidden states into logits."""

    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    scale: float  # multiplies the logits (Cohere, Granite)
    softcap: float | None  # softcap * tanh(logits / softcap), after the scale (Gemma)

    def __call__(self, hidden: Tensor) -> Tensor:
        """[N, V] logits, float32 or wider, of `hidden` [N, H]."""
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        logits = torch.nn.functional.linear(hidden, self.weight.to(hidden.dtype), bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.scale
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()

    def narrowed(self, width: int) -> LMHead:
        """The head of the first `width` tokens: padding rows past the common vocabulary never reach the softmax."""
        if width == self.weight.shape[0] or hasattr(self.weight, "ds_id"):
            return self  # ZeRO-3 shards to shape [0] and knows a weight by identity; the trainer allows one width there
        bias = None if self.bias is None else self.bias[:width]
        return LMHead(self.weight[:width], bias, self.scale, self.softcap)


def lm_head(model: PreTrainedModel) -> LMHead:
    """The language-model head of `model`, with the scale and softcap its configuration declares.

    Sharded weights (FSDP2) are gathered once here rather than once per chunk.
    """
    head: Any = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):  # Cohere, Muse Glimmer, Falcon-H1
        if getattr(config, name, None) is not None:
            scale = float(getattr(config, name))
            break
    else:
        scaling = getattr(config, "logits_scaling", None)
        if scaling is not None:  # Granite and MiniCPM3 divide, HyperCLOVA X multiplies
            scale = float(scaling) if config.model_type == "hyperclovax" else 1 / float(scaling)

    def gathered(parameter: Tensor | None) -> Tensor | None:
        return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter

    weight = gathered(head.weight)
    assert weight is not None
    return LMHead(
        weight, gathered(getattr(head, "bias", None)), scale, getattr(config, "final_logit_softcapping", None)
    )


class TeacherTerms(NamedTuple):
    """What the teacher says of the tokens that were sampled. `[N]` each, nats, no gradient."""

    log_prob: Tensor  # log pi_T(token); -inf where the teacher excludes the token
    entropy: Tensor


class PrefixTerms(NamedTuple):
    """The loss and its companions at each of N prefixes. `[N]` each, nats; only `reverse_kl` carries a gradient."""

    reverse_kl: Tensor
    student_entropy: Tensor
    teacher: TeacherTerms


def teacher_terms(
    teacher_hidden: Tensor, head: LMHead, tokens: Tensor, alignment: Alignment, *, temperature: float = 1.0
) -> TeacherTerms:
    """Teacher log-probability and entropy at N prefixes, from its hidden states [N, H] and the sampled `tokens` [N]."""

    def terms(hidden: Tensor, token: Tensor) -> tuple[Tensor, ...]:
        return _teacher_terms(alignment.canonical(head(hidden), temperature), token, temperature)

    with torch.no_grad():
        tokens = _emitted_as_stop(tokens, alignment)
        return TeacherTerms(*_in_chunks(terms, head.weight.shape[0], teacher_hidden, tokens))


def chunked_reverse_kl(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    student_head: LMHead,
    teacher_head: LMHead,
    tokens: Tensor,
    alignment: Alignment,
    *,
    top_k: int | None = None,
    temperature: float = 1.0,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> PrefixTerms:
    """`reverse_kl` at N prefixes from hidden states [N, H_S] and [N, H_T], over the vocabulary both models share.

    Args:
        tokens: [N] int64, the token sampled at each prefix.
        alignment: cuts both models to the common width and merges their EOS sets.
        chunk_elements: logits per chunk and model; memory only, the result does not depend on it.
    """

    def terms(student_part: Tensor, teacher_part: Tensor, token: Tensor) -> tuple[Tensor, ...]:
        student_logits = alignment.canonical(student_head(student_part), temperature)
        with torch.no_grad():
            teacher_logits = alignment.canonical(teacher_head(teacher_part), temperature)
            student_entropy = entropy(student_logits, temperature)
            log_prob, teacher_entropy = _teacher_terms(teacher_logits, token, temperature)
        kl = reverse_kl(student_logits, teacher_logits, top_k=top_k, temperature=temperature)
        return kl, student_entropy, log_prob, teacher_entropy

    vocabulary = max(student_head.weight.shape[0], teacher_head.weight.shape[0])
    tokens = _emitted_as_stop(tokens, alignment)
    kl, student_entropy, log_prob, teacher_entropy = _in_chunks(
        terms, vocabulary, student_hidden, teacher_hidden, tokens, chunk_elements=chunk_elements
    )
    return PrefixTerms(kl, student_entropy, TeacherTerms(log_prob, teacher_entropy))


def _teacher_terms(logits: Tensor, token: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    log_probs = _tempered(logits, temperature).log_softmax(-1)
    return log_probs.gather(-1, token[:, None])[:, 0], entropy(logits, temperature)


def _emitted_as_stop(tokens: Tensor, alignment: Alignment) -> Tensor:
    """A rollout of another engine may end with any EOS id; their merged mass lies at `stop`."""
    if alignment.is_slice:
        return tokens
    return torch.where(torch.isin(tokens, tokens.new_tensor(alignment.duplicates)), alignment.stop, tokens)


def _in_chunks(
    terms: Callable[..., tuple[Tensor, ...]], vocabulary: int, *rows: Tensor, chunk_elements: int = CHUNK_ELEMENTS
) -> tuple[Tensor, ...]:
    """`terms` of N rows, computed on chunks of rows and recomputed in the backward pass."""
    size = max(1, chunk_elements // vocabulary)
    parts = []
    for start in range(0, max(1, len(rows[0])), size):  # one empty chunk when N = 0, which keeps the graph for DDP
        part = [row[start : start + size] for row in rows]
        if torch.is_grad_enabled():
            parts.append(checkpoint(terms, *part, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(terms(*part))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
