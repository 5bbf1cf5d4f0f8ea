"""Brings what a top-k teacher tells to the prefixes of a batch, where the loss needs it.

Rollouts within a KL budget have asked the teacher about each of their tokens already. Those of the student only, and
those of several turns, are scored as whole sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import EngineFailed, UsageError
from ...limits import ROUNDING_OF_MASS
from ...models.next_token import TokenScorer, TopKTeacher, checked_log_probs, checked_top
from ...rollout import Rollout
from ...top_k import TopK
from ...vocab import Alignment
from ..losses import emitted_as_stop
from .states import CompletionBatch


def told_at_prefixes(
    teacher: TopKTeacher, rollouts: Sequence[Rollout], batch: Mapping[str, Tensor], alignment: Alignment
) -> dict[str, Tensor]:
    """Returns what a teacher tells at the prefix of each token of a batch.

    Args:
        teacher: Is asked unless the rollouts hold what it said.
        rollouts: Of the batch, in order, one per turn and part.
        batch: "prompt_ids", "prompt_mask" [B, P], "completion_ids" and "completion_mask" [B, C].
        alignment: The vocabulary that both models share.

    Returns:
        By the names of a batch: "top_ids" int64 (-1 for none) and "top_log_prob" float32 [B, C, k], "rest_log_prob"
        float32 [B, C], nats; no token, and 0 as that of the rest, past the end of a completion.

    Raises:
        EngineFailed: A server gives no answer.
    """
    completions = batch["completion_ids"]
    top = _of_rollouts(rollouts, completions)
    if top is None:
        top = _scored(teacher, batch, alignment)
    return _with_rest(*(values.to(completions.device) for values in top))


def told_of_tokens(
    teacher: TokenScorer, batch: Mapping[str, Tensor], ids: Tensor, alignment: Alignment
) -> dict[str, Tensor]:
    """Returns what a teacher tells of given tokens at the prefix of each token of a batch.

    Args:
        teacher: Is asked once for each token of the completions.
        batch: As of `told_at_prefixes`.
        ids: [B, C, k] int64, of the common vocabulary, different ones at each prefix.
        alignment: The vocabulary that both models share.

    Returns:
        As `told_at_prefixes`, with `ids` as the tokens; and "teacher_log_prob" [B, C] of the completions' own tokens.

    Raises:
        EngineFailed: A server gives no answer.
        ValueError: The answer holds no log-probs of these tokens.
    """
    prompts, completions, lengths = _texts(batch)
    inside = torch.arange(ids.shape[1]) < lengths[:, None]
    prefixes = [
        prompt + completion[:place]
        for prompt, completion in zip(prompts, completions, strict=True)
        for place in range(len(completion))
    ]
    written = emitted_as_stop(batch["completion_ids"], alignment)
    asked = torch.cat([ids, written[..., None]], -1).cpu()
    log_probs = torch.full(asked.shape, -torch.inf)
    said = teacher.log_probs_of(prefixes, asked[inside], alignment)
    log_probs[inside] = checked_log_probs(said, teacher, asked[inside])
    kept = ids.masked_fill(~inside.to(ids.device)[..., None], -1)
    of_written = log_probs[..., -1].masked_fill(~inside, 0.0)
    told = _with_rest(kept, log_probs[..., :-1].to(ids.device))
    return {**told, "teacher_log_prob": of_written.to(ids.device)}


def require_token_scores(teacher: TopKTeacher, k: int, alignment: Alignment) -> TokenScorer:
    """Returns a teacher that tells the log-probs of k given tokens, after asking it once.

    Raises:
        UsageError: It does not.
        ValueError: It answers in another form.
    """
    if not isinstance(teacher, TokenScorer):
        raise UsageError(
            f"loss_tokens_of 'student' needs a teacher with `log_probs_of`, got {type(teacher).__name__}: leave it out"
        )
    ids = torch.arange(min(k + 1, alignment.width))[None]  # a step asks for the token that was written as well
    try:
        said = teacher.log_probs_of([[0]], ids, alignment)
    except EngineFailed as error:
        raise UsageError(f"loss_tokens_of 'student' needs a server that scores given tokens: {error}") from error
    checked_log_probs(said, teacher, ids)
    return teacher


def _with_rest(ids: Tensor, log_probs: Tensor) -> dict[str, Tensor]:
    log_probs = log_probs.masked_fill(ids < 0, -torch.inf)  # `trbext.TopK`: not looked at where there is no token
    # A sum of float32 numbers does not know a smaller rest; `trbext.TopK` says the same of the operators.
    rest = (1 - log_probs.double().exp().sum(-1)).clamp(min=ROUNDING_OF_MASS).log()
    return {"top_ids": ids, "top_log_prob": log_probs, "rest_log_prob": rest.float()}


def _of_rollouts(rollouts: Sequence[Rollout], completions: Tensor) -> TopK | None:
    rows, width = completions.shape
    told = [rollout.teacher_top_ids.shape[2] for rollout in rollouts if rollout.teacher_top_ids is not None]
    parts = []
    for rollout in rollouts:
        ids, log_probs = rollout.teacher_top_ids, rollout.teacher_top_log_prob
        if ids is None or log_probs is None:
            return None
        # A teacher may tell more to one than to another, and the completions may be cut to a prefix.
        padding = (0, max(told) - ids.shape[2], 0, width - ids.shape[1])
        parts.append((F.pad(ids, padding, value=-1), F.pad(log_probs, padding, value=-torch.inf)))
    # More rows than completions: conversations of several turns, whose tokens are not those of one rollout.
    if sum(len(ids) for ids, _ in parts) != rows:
        return None
    return TopK(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _scored(teacher: TopKTeacher, batch: Mapping[str, Tensor], alignment: Alignment) -> TopK:
    prompts, completions, lengths = _texts(batch)
    sequences = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    said = teacher.score(sequences, [len(prompt) for prompt in prompts], alignment)
    told = checked_top(said, teacher, int(lengths.sum()), alignment.width)
    k = told.ids.shape[1]
    ids = torch.full((*batch["completion_ids"].shape, k), -1)
    log_probs = torch.full(ids.shape, -torch.inf)
    inside = torch.arange(ids.shape[1]) < lengths[:, None]
    ids[inside], log_probs[inside] = told
    return TopK(ids, log_probs)


def _texts(batch: Mapping[str, Tensor]) -> tuple[list[list[int]], list[list[int]], Tensor]:
    """Returns the prompts and the completions of a batch without padding, and the lengths [B] of the latter."""
    prompt_ids, prompt_mask, completion_ids, completion_mask = (part.cpu() for part in CompletionBatch.of(batch))
    prompts = [ids[mask != 0].tolist() for ids, mask in zip(prompt_ids, prompt_mask, strict=True)]
    lengths = completion_mask.sum(1)
    written = zip(completion_ids, lengths.tolist(), strict=True)
    return prompts, [ids[:length].tolist() for ids, length in written], lengths
