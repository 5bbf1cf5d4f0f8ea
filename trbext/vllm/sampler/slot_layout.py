"""Works out which rows of a step of Model Runner V2 belong together, on the device and without waiting for it.

The runner keeps what belongs to a request at its slot (`idx_mapping`). The logits of a step have one row for each draft
of a request, and one more. Request r has the rows cu_num_logits[r] .. cu_num_logits[r + 1] - 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .row_layout import Flags, Indices


class DraftRows(NamedTuple):
    """The N drafts of B requests, as `torch.ops.trb.verify` takes them."""

    offsets: Tensor  # [B + 1] int32
    drafts: Tensor  # [N] token ids, -1 where the runner has a placeholder
    teacher_rows: Tensor  # [N] int64 row of the step's logits
    student_rows: Tensor  # [N] int64 row of draft_logits.flatten(0, 1), -1 of a placeholder: verify stops there unread
    undrafted: Tensor  # [B] bool, requests of which no draft can be verified


def draft_rows(
    *,
    input_ids: Tensor,
    positions: Tensor,
    logits_indices: Tensor,
    cu_num_logits: Tensor,
    expanded_idx_mapping: Tensor,
    expanded_local_pos: Tensor,
    prefill_len: Tensor,
    draft_length: int,
) -> DraftRows:
    """The rows of a step that has drafts. The arguments are the runner's, of the same names.

    The extra row of each request, which stands for a bonus token of the teacher, is left out. A draft is the input of
    the position after the one whose logits judge it. A request that has not sampled since it was read has placeholders
    instead of drafts.

    Args:
        input_ids: [num_tokens] int32, the inputs of the step.
        positions: [num_tokens] int64, their places in the sequence.
        logits_indices: [N + B] int64, the inputs whose logits there are.
        cu_num_logits: [B + 1] int32, from 0, the rows of each request.
        expanded_idx_mapping: [N + B] int64, the slot of each row.
        expanded_local_pos: [N + B] int32, the place of each row in its request.
        prefill_len: [slots] int32, tokens that a request is read with.
        draft_length: k, drafts of a slot in `draft_logits` [slots, k, V].
    """
    device, requests = cu_num_logits.device, cu_num_logits.shape[0] - 1
    rows = logits_indices.shape[0] - requests  # by shapes: nothing is read
    offsets = cu_num_logits - torch.arange(requests + 1, dtype=cu_num_logits.dtype, device=device)
    of_row = torch.arange(rows, dtype=offsets.dtype, device=device)
    request = torch.searchsorted(offsets[1:].contiguous(), of_row, right=True)
    teacher_rows = of_row + request
    slot, place = expanded_idx_mapping[teacher_rows], expanded_local_pos[teacher_rows]
    judged = logits_indices[teacher_rows]
    placeholder = positions[judged] - place < prefill_len[slot]
    drafts = input_ids[logits_indices[teacher_rows + 1]].masked_fill(placeholder, -1)
    student_rows = (slot * draft_length + place).masked_fill(drafts < 0, -1)
    starts = offsets[:-1].long()
    first = student_rows[starts.clamp(max=max(rows - 1, 0))] if rows else starts
    undrafted = (offsets[1:] == offsets[:-1]) | (first < 0)
    return DraftRows(offsets, drafts, teacher_rows, student_rows, undrafted)


class Sampled(NamedTuple):
    """How many tokens of a step the runner keeps of each of B requests."""

    num_sampled: Tensor  # [B] int32
    num_rejected: Tensor  # [B] int32, rows of logits past them


def sampled(emitted: Tensor, accepted: Tensor, cu_num_logits: Tensor, seq_lens: Tensor, prefill_len: Tensor) -> Sampled:
    """What the runner's `get_num_sampled_and_rejected` says of the results of verify.

    Args:
        emitted: [B] int32, -1 of a request at fault; 0 of one without drafts, whose token comes from elsewhere.
        accepted: [B] int32.
        cu_num_logits: [B + 1] int32.
        seq_lens: [B] int32, tokens of each request with the inputs of this step.
        prefill_len: [B] int32, tokens that it is read with.
    """
    # The runner must get a token from every request. One at fault keeps what it wrote before, or gives a token that its
    # client throws away.
    count = torch.where(emitted < 0, accepted, emitted).clamp(min=1)
    unread = seq_lens < prefill_len  # a prompt in pieces: its token is not one
    count = count.masked_fill(unread, 0)
    logits = cu_num_logits[1:] - cu_num_logits[:-1]
    return Sampled(count.int(), (logits - count).masked_fill(unread, 0).int())


@dataclass(frozen=True)
class HostLayout:
    """What the host knows of B requests without asking the device."""

    counts: Indices  # [B] drafts of each request
    usable: Flags  # [B] whether verify judges them
    held_out: Flags  # [B] whether the request has just been read, and gives back the token that it held out
    lost: Flags  # [B] whether the teacher has to draw, for want of drafts

    @classmethod
    def of(cls, batch: Any, prompt_len: Indices) -> HostLayout:
        """The layout of a step.

        Args:
            batch: The runner's InputBatch.
            prompt_len: [B] tokens of each prompt. A preempted request is read again with what it had written.
        """
        counts = np.zeros(batch.num_reqs, np.int64)
        if batch.num_draft_tokens_per_req is not None:
            counts += batch.num_draft_tokens_per_req
        reading = batch.is_prefilling_np
        end = batch.num_computed_prefill_tokens_np + batch.num_scheduled_tokens
        unread = reading & (end < batch.prefill_len_np)
        usable = (counts > 0) & ~reading
        held_out = reading & ~unread & (batch.prefill_len_np == prompt_len)
        return cls(counts, usable, held_out, ~usable & ~unread & ~held_out)
