"""Puts what is known of a teacher at each token of a completion into the fields that verl carries to its actor.

verl has `teacher_ids` and `teacher_logprobs` of one row for each token of prompt and completion; the row of a token is
of the distribution of the next one. Ours have k + 1 columns: k tokens, and all other tokens together with the id -1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..limits import ROUNDING_OF_MASS
from ..vllm.sampler.teacher_top import TeacherTop
from ..vocab import Alignment

REST = -1  # the id of all other tokens together, and of a column without a token


def rows_of_completion(top: TeacherTop, prompt_tokens: int) -> tuple[Tensor, Tensor]:
    """Returns the rows of a prompt and its completion.

    Args:
        top: [T, k] and [T], at the prefix of each token of the completion.
        prompt_tokens: P, at least 1.

    Returns:
        Ids [P + T, k + 1] int32 and log-probabilities [P + T, k + 1] float32. Rows of which nothing is known say that
        the rest has all mass, at which any student's reverse KL is 0.
    """
    tokens, k = top.ids.shape
    ids = torch.full((prompt_tokens + tokens, k + 1), REST, dtype=torch.int32)
    log_probs = torch.full(ids.shape, -torch.inf, dtype=torch.float32)
    log_probs[:, -1] = 0.0
    known = slice(prompt_tokens - 1, prompt_tokens + tokens - 1)
    ids[known, :-1] = top.ids.int()
    log_probs[known] = torch.cat([top.log_prob, top.rest_log_prob[:, None]], -1).float()
    return ids, log_probs


def top_of_rows(ids: Tensor, log_probs: Tensor) -> TeacherTop:
    """Returns what `rows_of_completion` or `rows_of_pool` put into rows [..., k + 1]."""
    return TeacherTop(ids[..., :-1], log_probs[..., :-1], log_probs[..., -1])


def rows_of_pool(ids: Tensor, log_probs: Tensor, alignment: Alignment) -> tuple[Tensor, Tensor]:
    """Turns the rows of verl's own teacher pool into ours, over the vocabulary that both models share.

    With k = V the rows are whole and the loss is over the full vocabulary. With fewer tokens, which are the teacher's
    own most probable ones, the others have the mass that is left of 1.

    Args:
        ids: [S, k] int32, the teacher's most probable tokens.
        log_probs: [S, k] float32, at temperature 1.
        alignment: All EOS ids of both models become its stop token.

    Returns:
        Ids [S, k + 1] and log-probabilities [S, k + 1].
    """
    stops = ids.new_tensor([alignment.stop, *alignment.duplicates])
    is_stop, dropped = torch.isin(ids, stops), ids >= alignment.width
    if ids.shape[-1] >= alignment.width:
        first = is_stop & (is_stop.cumsum(-1) == 1)
        stop_log_prob = log_probs.masked_fill(~is_stop, -torch.inf).logsumexp(-1, keepdim=True)
        kept = torch.where(first, stop_log_prob, log_probs)
        ids, dropped = ids.masked_fill(first, alignment.stop), dropped | (is_stop & ~first)
        rest = torch.full_like(log_probs[:, :1], -torch.inf)
    else:
        # An EOS id that is not among the k tokens has its mass in the rest, so the whole stop event belongs there.
        kept, dropped = log_probs, dropped | (is_stop & bool(alignment.duplicates))
        mass = log_probs.masked_fill(dropped, -torch.inf).exp().sum(-1, keepdim=True)
        # Float32 does not tell a rest below its rounding from none, of which the loss would be infinite. The larger
        # rest keeps the loss a lower bound.
        rest = (1.0 - mass).clamp(min=ROUNDING_OF_MASS).log()
    ids, kept = ids.masked_fill(dropped, REST), kept.masked_fill(dropped, -torch.inf)
    return torch.cat([ids, torch.full_like(ids[:, :1], REST)], -1), torch.cat([kept, rest], -1)
