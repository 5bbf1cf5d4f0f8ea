"""Computes what a loss needs of any teacher: a state at the prefix of each token, and a head that makes logits of it.

Of a transformers model these are its last hidden states and its lm_head. Of a model that yields only logits they are
the logits themselves. Of a mixture they are those of all its teachers side by side, and its head mixes their logits a
chunk at a time, so that no [prefixes, V] tensor outlives its chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.cached_model import unwrap
from ...models.completion_states import completion_states
from ...models.eval_mode import evaluating
from ...models.lm_head import Head, LMHead, lm_head
from ...models.next_token import NextTokenCache, as_next_token_model, is_transformers
from ...teachers import Mixture, SelfTeacher
from ...teachers.mixture import mixed
from ...vocab import Alignment


class CompletionBatch(NamedTuple):
    """The completions of a micro-batch after their prompts."""

    prompt_ids: Tensor  # [B, P] int64, left padded
    prompt_mask: Tensor  # [B, P]
    completion_ids: Tensor  # [B, C] int64, right padded
    completion_mask: Tensor  # [B, C]

    @classmethod
    def of(cls, batch: Mapping[str, Any], rows: slice = slice(None)) -> CompletionBatch:
        """Returns some rows of a batch that has these fields by their names."""
        return cls(*(batch[name][rows] for name in cls._fields))

    @property
    def whole(self) -> tuple[Tensor, Tensor]:
        """Token ids and mask of prompts and completions, [B, P + C] each."""
        ids = torch.cat([self.prompt_ids, self.completion_ids], 1)
        return ids, torch.cat([self.prompt_mask, self.completion_mask], 1)

    def of_rows(self, rows: Tensor) -> CompletionBatch:
        """Returns the rows [m] of the batch."""
        return CompletionBatch(*(part[rows] for part in self))


StatesOfModel = Callable[[Any, CompletionBatch], Tensor]


@dataclass(frozen=True)
class LogitsHead:
    """The head of a model whose states are its logits."""

    vocabulary: int
    device: torch.device

    def detached(self, device: torch.device) -> LogitsHead:
        """Returns itself: it has no weights."""
        return self

    def __call__(self, hidden: Tensor, /) -> Tensor:
        return hidden.to(torch.promote_types(hidden.dtype, torch.float32))


@dataclass(frozen=True)
class MixtureHead:
    """The head of a mixture, whose states are those of its teachers and then their weights at the row."""

    heads: list[Head]
    widths: list[int]  # of the states of each teacher
    mixture: Mixture
    alignment: Alignment
    temperature: float

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.heads[0].device

    @property
    def vocabulary(self) -> int:
        """How many logits there are at a time, those of all teachers."""
        return sum(head.vocabulary for head in self.heads)

    def detached(self, device: torch.device) -> MixtureHead:
        """Returns the head with all weights on `device`, which stay there when those of the models leave."""
        return replace(self, heads=[head.detached(device) for head in self.heads])

    def __call__(self, hidden: Tensor, /) -> Tensor:
        *states, weights = hidden.split([*self.widths, len(self.heads)], -1)
        # `mixed` writes into the logits, and states that are logits themselves are read again in the backward pass.
        parts = [
            (None, weights[:, number].float(), head(state.clone() if isinstance(head, LogitsHead) else state))
            for number, (head, state) in enumerate(zip(self.heads, states, strict=True))
        ]
        return mixed(parts, len(hidden), self.mixture.mean, self.alignment, self.temperature)


def teacher_states(
    teacher: Any,
    batch: CompletionBatch,
    *,
    of_model: StatesOfModel,
    alignment: Alignment,
    temperature: float,
    gather_zero3: bool = True,
    device: torch.device,
) -> tuple[Tensor, Head]:
    """Returns the states [B, C, H] of a teacher at the prefix of each token of the completions, and its head.

    Args:
        teacher: A model of transformers, which may be wrapped; a `self_teacher`, a `mixture`, or anything that yields
            logits.
        batch: The completions.
        of_model: Returns the states of a transformers model, through the wrappers that a trainer has put around it.
        alignment: The vocabulary that all models share.
        temperature: At which the softmax of the loss is taken, which the arithmetic mean depends on.
        gather_zero3: As in `lm_head`.
        device: Of a head that has no weights.
    """
    if isinstance(teacher, Mixture):
        return _of_mixture(teacher, batch, of_model, alignment, temperature, device)
    if isinstance(teacher, SelfTeacher):
        with teacher.without_adapters(), evaluating([teacher]):
            states = completion_states(teacher.get_base_model(), *batch.whole, batch.completion_ids.shape[1])
        return states, head_of(teacher, alignment)
    if is_transformers(teacher):
        return of_model(teacher, batch), head_of(teacher, alignment, gather_zero3=gather_zero3)
    return _logits(teacher, batch, alignment, device)


def head_of(teacher: Any, alignment: Alignment, *, gather_zero3: bool = True) -> LMHead:
    """Returns the head of a teacher whose rollouts may keep its hidden states: a transformers model or a
    `self_teacher`."""
    with teacher.without_adapters() if isinstance(teacher, SelfTeacher) else nullcontext():
        return lm_head(unwrap(teacher), gather_zero3=gather_zero3).narrowed(alignment.width)


def _logits(teacher: Any, batch: CompletionBatch, alignment: Alignment, device: torch.device) -> tuple[Tensor, Head]:
    modules = [teacher] if hasattr(teacher, "modules") else []
    # Columns of padding only, which `pad_to_multiple_of` adds, are left out: it may know no positions so far on.
    prompt, completion = (max(1, int(mask.sum(1).max())) for mask in (batch.prompt_mask, batch.completion_mask))
    # It computes as in rollouts, in a precision of its own, although the loss is under autocast.
    with evaluating(modules), torch.autocast(batch.prompt_ids.device.type, enabled=False):
        first = prompt - batch.prompt_mask.sum(1, keepdim=True)
        ids = torch.cat([batch.prompt_ids[:, -prompt:], batch.completion_ids[:, : completion - 1]], 1)
        model = NextTokenCache(as_next_token_model(teacher, "teacher"), "teacher", first)
        logits = model.extend(ids, first, 0, logits=completion)[..., : alignment.width]
        logits = F.pad(logits, (0, 0, 0, batch.completion_ids.shape[1] - completion))
    return logits.to(device), LogitsHead(alignment.width, device)


def _of_mixture(
    teacher: Mixture,
    batch: CompletionBatch,
    of_model: StatesOfModel,
    alignment: Alignment,
    temperature: float,
    device: torch.device,
) -> tuple[Tensor, Head]:
    rows, kept = batch.completion_ids.shape
    weights = teacher.weights.expand(rows, -1)
    # Only the teachers of these rows are called, each for its own rows.
    called = [number for number in range(len(teacher.teachers)) if (weights[:, number] > 0).any()]
    states, heads = [], []
    for number in called:
        read = weights[:, number].nonzero()[:, 0].to(device)
        found, head = teacher_states(
            teacher.teachers[number],
            batch.of_rows(read) if len(read) < rows else batch,
            of_model=of_model,
            alignment=alignment,
            temperature=temperature,
            device=device,
        )
        if len(read) < rows:
            whole = found.new_zeros((rows, kept, found.shape[2]))
            whole[read] = found
            found = whole
        states.append(found.to(device))
        heads.append(head)
    weights = weights[:, called]
    # The weights travel with the states of their row. Shares other than 0 and 1 keep their digits in float32.
    whole_numbers = bool(((weights == 0) | (weights == 1)).all())
    dtype = states[0].dtype if whole_numbers else torch.float32
    states.append(weights[:, None].expand(-1, kept, -1).to(device, dtype))
    head = MixtureHead(heads, [part.shape[2] for part in states[:-1]], teacher, alignment, temperature)
    return torch.cat(states, -1), head
