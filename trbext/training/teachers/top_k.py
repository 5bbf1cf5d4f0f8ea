"""Brings what a top-k teacher tells to the prefixes of a batch, where the loss needs it.

Rollouts within a KL budget have asked the teacher about each of their tokens already. Those of the student only, and
those of several turns, are scored as whole sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...limits import ROUNDING_OF_MASS
from ...models.next_token import TopKTeacher
from ...rollout import Rollout
from ...top_k import TopK
from ...vocab import Alignment


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
    ids, log_probs = (values.to(completions.device) for values in top)
    # A sum of float32 numbers does not know a smaller rest; `trbext.TopK` says the same of the operators.
    rest = (1 - log_probs.double().exp().sum(-1)).clamp(min=ROUNDING_OF_MASS).log()
    return {"top_ids": ids, "top_log_prob": log_probs, "rest_log_prob": rest.float()}


def _of_rollouts(rollouts: Sequence[Rollout], completions: Tensor) -> TopK | None:
    rows, width = completions.shape
    parts = []
    for rollout in rollouts:
        ids, log_probs = rollout.teacher_top_ids, rollout.teacher_top_log_prob
        if ids is None or log_probs is None:
            return None
        padding = (0, 0, 0, width - ids.shape[1])
        if padding[3] < 0:
            return None
        parts.append((F.pad(ids, padding, value=-1), F.pad(log_probs, padding, value=-torch.inf)))
    # More rows than completions: conversations of several turns, whose tokens are not those of one rollout.
    if sum(len(ids) for ids, _ in parts) != rows:
        return None
    return TopK(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _scored(teacher: TopKTeacher, batch: Mapping[str, Tensor], alignment: Alignment) -> TopK:
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    prompt_ids, prompt_mask, completion_ids, completion_mask = (batch[name].cpu() for name in names)
    prompts = [ids[mask != 0].tolist() for ids, mask in zip(prompt_ids, prompt_mask, strict=True)]
    lengths = completion_mask.sum(1)
    sequences = [
        prompt + ids[:length].tolist()
        for prompt, ids, length in zip(prompts, completion_ids, lengths.tolist(), strict=True)
    ]
    told = teacher.score(sequences, [len(prompt) for prompt in prompts], alignment)
    k = told.ids.shape[1]
    ids = torch.full((*completion_ids.shape, k), -1)
    log_probs = torch.full(ids.shape, -torch.inf)
    inside = torch.arange(ids.shape[1]) < lengths[:, None]
    ids[inside], log_probs[inside] = told.ids.long(), told.log_probs.float()
    return TopK(ids, log_probs)
