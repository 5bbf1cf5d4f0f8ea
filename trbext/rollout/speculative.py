"""Speculative decoding of the behavior policy: the student drafts, one teacher pass verifies, and the law stays mu.

A round drafts tokens from the student, feeds them to the teacher in one pass, and `trbext.verify` keeps each draft x
with probability min(1, mu(x) / pi_S(x)); the first that falls is replaced by a draw from max(mu - pi_S, 0), and the
rest is taken back. Every token then follows mu = pi_S^(1-beta) pi_T^beta / Z with KL(mu || pi_S) <= epsilon (arXiv
2605.31159; the scheme is Leviathan et al., arXiv 2211.17192, with mu in the place of the target). A draft falls with
probability TV(mu, pi_S) <= sqrt(epsilon / 2), so at small budgets most stand and the teacher runs once for several
tokens.

With draft length k a pass writes up to k + 1 tokens, as in other engines. Where those add a token of the teacher after
k drafts that all stood, here that would not follow mu: the last row of a pass is a draw from mu as well, for which the
student takes one more step. It is drawn as the others are, by a draft that stands or is replaced; k = 0 is then one
token for a pass.

Randomness: three uniforms per row and position, of the draft, of its acceptance and of the token drawn in its place,
all drawn before the first round. Which token stands at a position then depends on the prefix and these alone, not on
how the completion was cut into rounds: any sequence of draft lengths gives the same rollout, up to the rounding of the
models' own kernels.

Host reads are those of `lockstep`: rows end, leave the batch and have their costs read where `next_host_read` says, and
after each of the few rounds that "auto" makes to measure. Between them the host knows how far the farthest row can be
at most, which is all it needs.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..models.eval_mode import evaluating
from ..models.model_check import probe_models
from ..vocab import Alignment
from .checks import check_epsilon, check_models, check_prompts
from .draft_length import DraftLength
from .hidden_states import HiddenStates
from .lockstep import lockstep
from .output import Rollout
from .policies import Policy, TrustRegion

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DraftLengths = int | Literal["auto"] | DraftLength


def speculative(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
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
    """Completions of a batch of prompts, drawn from the behavior policy by speculation.

    Arguments, errors and what is returned: as `lockstep`, and

    draft_length: k tokens that the student drafts ahead, of which a pass of the teacher then tests k and draws one
        more; "auto" measures and chooses k round by round, as does a `DraftLength`, which may be kept from one rollout
        to the next. 0 is `lockstep` itself. The law is the same for all, and the rollout for "auto" and all k >= 1, up
        to rounding.

    Only a `TrustRegion` that asks the teacher is speculated on, which `epsilon` is short for; other policies, and the
    float epsilon 0, are decoded in lockstep. So is a model whose cache cannot take tokens back, with a warning that
    names its class.
    """
    auto = DraftLength() if draft_length == "auto" else draft_length if isinstance(draft_length, DraftLength) else None
    fixed = 0 if auto is not None else check_draft_length(draft_length)

    def in_lockstep() -> Rollout:
        return lockstep(
            student,
            teacher,
            input_ids,
            attention_mask,
            epsilon=epsilon,
            policy=policy,
            optimizer_step=optimizer_step,
            max_new_tokens=max_new_tokens,
            alignment=alignment,
            pad_token_id=pad_token_id,
            temperature=temperature,
            generator=generator,
            teacher_states_limit=teacher_states_limit,
            check=check,
        )

    blends = policy is None or (isinstance(policy, TrustRegion) and policy.needs_teacher(optimizer_step))
    budget = policy.epsilon(optimizer_step) if isinstance(policy, TrustRegion) else epsilon
    pure_student = not isinstance(budget, Tensor) and budget == 0
    if not blends or budget is None or pure_student or teacher is None or (auto is None and fixed == 0):
        return in_lockstep()
    check_epsilon(budget, input_ids)
    models = [student, teacher]
    prompts, prompt_mask, lengths = check_prompts(input_ids, attention_mask)
    check_models(models, lengths, max_new_tokens)
    if check:
        probe_models(models, int(lengths.max()) + max_new_tokens)
    # These need transformers, which `import trbext.rollout` does not.
    from ..models.rollback_model import cannot_roll_back
    from .speculative_rounds import Rounds

    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(evaluating(models))
        reasons = [reason for reason in map(cannot_roll_back, models) if reason is not None]
        if reasons:
            warnings.warn(f"decoding in lockstep: {' and '.join(reasons)}", stacklevel=2)
            return in_lockstep()
        states = None
        if teacher_states_limit > 0:
            states = stack.enter_context(HiddenStates(teacher, len(prompts), limit_bytes=teacher_states_limit))
        rounds = Rounds(
            student,
            teacher,
            prompts,
            prompt_mask,
            lengths,
            epsilon=budget,
            max_new_tokens=max_new_tokens,
            longest=auto.longest if auto is not None else fixed,
            alignment=alignment,
            temperature=temperature,
            generator=generator,
        )
        return rounds.run(auto or fixed, states, pad_token_id)


def check_draft_length(draft_length: Any) -> int:
    """The number of drafts k; 0 for "auto". ValueError where it is neither."""
    if draft_length == "auto":
        return 0
    if isinstance(draft_length, bool) or not isinstance(draft_length, int) or draft_length < 0:
        raise ValueError(
            f"draft_length must be 'auto', 0 for lockstep, or a number of drafts k >= 1, got {draft_length!r}"
        )
    return draft_length
