"""Decodes the behavior policy by speculation: the student drafts, one pass of the teacher verifies, the law stays mu.

A round drafts tokens from the student, feeds them to the teacher in one pass, and `trbext.verify` accepts each draft x
with probability min(1, mu(x) / pi_S(x)). The first rejected draft is replaced by a draw from max(mu - pi_S, 0), and the
drafts after it are taken back. Every token then follows mu = pi_S^(1-beta) pi_T^beta / Z with KL(mu || pi_S) <= epsilon
(arXiv 2605.31159; the scheme is that of Leviathan et al., arXiv 2211.17192, with mu as the target). A draft is rejected
with probability TV(mu, pi_S) <= sqrt(epsilon / 2), so at small budgets most drafts are accepted and the teacher runs
once for several tokens.

With draft length k a pass writes up to k + 1 tokens, as in other engines. If all k drafts are accepted, other engines
add a token of the target from the last row of the pass. Here a token of the teacher would not follow mu: the last row
is a draw from mu as well, for which the student takes one more step. This token is drawn as the others are, by a draft
that is accepted or replaced; k = 0 is then one token per pass.

Randomness: three uniform numbers per row and position, for the draft, its acceptance and the token drawn in its place,
all drawn before the first round. The token at a position then depends on its prefix and these numbers only, not on how
the completion was cut into rounds: any sequence of draft lengths gives the same rollout, up to the rounding of the
models' own kernels.

Host reads happen as in `lockstep`: rows end, leave the batch and have their costs read at the tokens that
`next_host_read` gives, and after each of the few rounds that "auto" uses to measure. Between host reads the host knows
an upper bound for the position of the farthest row, which is all that a round needs.
"""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..models.next_token import LogitsFunction, NextTokenModel, TopKTeacher
from ..teachers import Mixture, SelfTeacher
from ..vocab import Alignment
from .caches import cannot_take_back
from .decoding import Decoding
from .draft_length import DraftLength
from .lockstep import decode_in_lockstep
from .output import Rollout
from .policy import Policy
from .speculative_rounds import Rounds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DraftLengths = int | Literal["auto"] | DraftLength


def speculative(
    student: PreTrainedModel | NextTokenModel | LogitsFunction,
    teacher: PreTrainedModel | SelfTeacher | Mixture | NextTokenModel | TopKTeacher | LogitsFunction | None,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    epsilon: float | Tensor | None = None,
    policy: Policy | None = None,
    optimizer_step: int = 0,
    max_new_tokens: int,
    alignment: Alignment,
    pad_token_id: int,
    draft_length: DraftLengths = "auto",
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    teacher_states_limit: float = 0.0,
    check: bool = True,
) -> Rollout:
    """Completes a batch of prompts with tokens that the behavior policy draws, by speculation.

    Only a `TrustRegion` that needs the teacher is decoded by speculation; `epsilon` is short for one. Other policies,
    and the float epsilon 0, are decoded in lockstep. So is a model whose KV cache cannot take tokens back, with a
    warning that names its class.

    Args:
        student: As in `lockstep`, like all arguments that are not described here.
        teacher: As in `lockstep`, or a `TopKTeacher` such as `trbext.RemoteTeacher`, at temperature 1. The budget then
            is that of the blend with the teacher that `trbext.TopK` describes.
        input_ids: [B, P] int64, token ids of the prompts, left padded.
        attention_mask: [B, P], 1 for tokens and 0 for padding.
        epsilon: KL budget per token in nats, one for all rows or [B].
        policy: Draws the tokens; give it or `epsilon`.
        optimizer_step: 0-based, for policies that change over a run.
        max_new_tokens: Length limit of a completion, in tokens.
        alignment: The vocabulary that both models share (`trbext.align`).
        pad_token_id: The id that follows the end of a row.
        draft_length: k tokens that the student drafts ahead; after a pass of the teacher a row has up to k + 1 more.
            "auto" measures costs and chooses k round by round. So does a `DraftLength`, which may be kept from one
            rollout to the next. 0 is `lockstep` itself. The law is the same for all. The rollout is the same for "auto"
            and all k >= 1, up to rounding.
        temperature: 1e-6 to 1e6, divides the logits of both models.
        generator: Of random numbers, on any device.
        teacher_states_limit: Bytes up to which `Rollout.teacher_states` are kept.
        check: Probe both models once, before they first decode.

    Returns:
        As `lockstep`, with `Rollout.speculation` if the rollout was decoded by speculation.

    Raises:
        ValueError: As `lockstep`, and for a draft length that is neither "auto", a `DraftLength` nor a whole number
            >= 0.
        RuntimeError: As `lockstep`.
    """
    auto = DraftLength() if draft_length == "auto" else draft_length if isinstance(draft_length, DraftLength) else None
    fixed = 0 if auto is not None else check_draft_length(draft_length)
    decoding = Decoding(
        student=student,
        teacher=teacher,
        prompts=input_ids,
        prompt_mask=attention_mask,
        epsilon=epsilon,
        given_policy=policy,
        optimizer_step=optimizer_step,
        max_new_tokens=max_new_tokens,
        alignment=alignment,
        pad_token_id=pad_token_id,
        temperature=temperature,
        generator=generator,
        teacher_states_limit=teacher_states_limit,
        check=check,
    )
    top_k = isinstance(decoding.teacher, TopKTeacher)  # has no lockstep: k = 0 is a round per token
    if decoding.budget is None or decoding.teacher is None or (auto is None and fixed == 0 and not top_k):
        return decode_in_lockstep(decoding)
    with torch.no_grad(), decoding.evaluating():
        reasons = [reason for reason in map(cannot_take_back, decoding.models) if reason is not None]
    if reasons and top_k:
        raise ValueError(f"a top-k teacher needs a student from which tokens can be taken back: {reasons[0]}")
    if reasons:
        warnings.warn(f"decoding in lockstep: {' and '.join(reasons)}", stacklevel=2)
        return decode_in_lockstep(decoding)
    return Rounds(decoding, longest=auto.longest if auto is not None else fixed).run(auto or fixed)


def check_draft_length(draft_length: Any) -> int:
    """Checks a draft length that a user gave.

    Returns:
        The number of drafts k; 0 for "auto".

    Raises:
        ValueError: It is neither "auto" nor a whole number of at least 0.
    """
    if draft_length == "auto":
        return 0
    if isinstance(draft_length, bool) or not isinstance(draft_length, Integral) or draft_length < 0:
        raise ValueError(
            f"draft_length must be 'auto', 0 for lockstep, or a number of drafts k >= 1, got {draft_length!r}"
        )
    return int(draft_length)
