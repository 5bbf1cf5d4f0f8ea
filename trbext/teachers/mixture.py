"""Makes one teacher of several: a geometric or arithmetic mean of their distributions, or another one for each row.

With weights w_i that add up to 1 and pi_i the teachers' distributions over the aligned vocabulary at the temperature T:

    geometric    pi_T ~ prod pi_i^w_i, whose logits are sum w_i b_i;
    arithmetic   pi_T = sum w_i pi_i.

Of several teachers of the same weights everywhere, the geometric mean is the distribution that is closest to all of
them in sum w_i KL(pi || pi_i), and the arithmetic mean is it in sum w_i KL(pi_i || pi). EOS ids are merged in each
teacher before the mean, so that teachers that stop with different ids agree that they stop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..models.cached_model import unwrap
from ..models.next_token import TopKTeacher
from ..vocab import Alignment, eos_ids, vocabulary_size

Mean = Literal["geometric", "arithmetic"]
MEANS = ("geometric", "arithmetic")


@dataclass(frozen=True)
class Mixture:
    """Several teachers as one. Made by `mixture`; arguments and errors are described there."""

    teachers: tuple[Any, ...]
    weights: Tensor  # [n], or [B, n] for the rows of one batch; float64 on the CPU, each row adds up to 1
    mean: Mean
    labels: tuple[str, ...] | None = None  # of the teachers, by which the rows of a run are routed

    @property
    def config(self) -> MixtureConfig:
        """The width that all teachers share, as a configuration of transformers says it."""
        return MixtureConfig(min(vocabulary_size(unwrap(teacher)) for teacher in self.teachers))

    @property
    def generation_config(self) -> MixtureGeneration:
        """The EOS ids of all teachers, as a generation configuration of transformers says them."""
        ids = [token for teacher in self.teachers for token in eos_ids(unwrap(teacher))]
        return MixtureGeneration(list(dict.fromkeys(ids)))

    def with_weights(self, weights: Tensor | Sequence[Any]) -> Mixture:
        """Returns a mixture of the same teachers with other weights, for example those of a batch [B, n]."""
        return replace(self, weights=checked_weights(weights, len(self.teachers)))

    def of_rows(self, start: int, end: int) -> Mixture:
        """Returns the mixture of the rows from `start` to `end` of a batch."""
        return self if self.weights.dim() == 1 else replace(self, weights=self.weights[start:end])


@dataclass(frozen=True)
class MixtureConfig:
    """What a vocabulary is aligned by, of a mixture."""

    vocab_size: int

    def get_text_config(self) -> MixtureConfig:
        """Returns this configuration, as transformers' does for a model of text."""
        return self


@dataclass(frozen=True)
class MixtureGeneration:
    """The EOS ids of a mixture."""

    eos_token_id: list[int]


def mixture(
    teachers: Sequence[Any] | Mapping[str, Any],
    weights: Sequence[Any] | Tensor | None = None,
    *,
    mean: Mean = "geometric",
) -> Mixture:
    """Makes one teacher of several.

    Args:
        teachers: At least one: causal LMs, `self_teacher`s, `NextTokenModel`s or functions from ids to logits, which
            have the student's token ids. Logit widths and EOS ids may differ. A mapping gives each a label, by which
            `TRBConfig(teacher_column=...)` routes the rows of a run.
        weights: The share of each teacher, n numbers >= 0 that are divided by their sum; None is equal shares. [B, n]
            gives each row of the batch shares of its own: a one and zeros route the row to one teacher, and no other
            teacher reads that row.
        mean: "geometric" or "arithmetic".

    Returns:
        The teacher, for `lockstep`, `speculative` and `TRBTrainer`.

    Raises:
        TypeError: The teachers are neither a list nor a mapping.
        ValueError: There is no teacher, one is a mixture itself or a top-k teacher, the weights do not fit,
            or there is no such mean.
    """
    if not isinstance(teachers, (Sequence, Mapping)) or isinstance(teachers, str):
        raise TypeError(f"teachers must be a list, or a mapping from labels, got {type(teachers).__name__}")
    if not teachers:
        raise ValueError("a mixture needs at least one teacher, got none")
    labels = tuple(teachers) if isinstance(teachers, Mapping) else None
    listed = tuple(teachers.values()) if isinstance(teachers, Mapping) else tuple(teachers)
    for teacher in listed:
        if isinstance(teacher, Mixture):
            raise ValueError("a teacher of a mixture must be no mixture itself: list all teachers in one")
        if isinstance(teacher, TopKTeacher):
            raise ValueError(
                f"a teacher of a mixture must give logits, and a {type(teacher).__name__} is a top-k teacher"
            )
    if mean not in MEANS:
        raise ValueError(f"mean must be one of {', '.join(MEANS)}, got {mean!r}")
    given = [1.0] * len(listed) if weights is None else weights
    return Mixture(listed, checked_weights(given, len(listed)), mean, labels)


def checked_weights(weights: Tensor | Sequence[Any], teachers: int) -> Tensor:
    """Returns weights [n] or [B, n] as float64 on the CPU, each row divided by its sum.

    Raises:
        ValueError: Their shape is another, one is negative or not finite, or all of a row are 0.
    """
    try:
        given = torch.as_tensor(weights, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"weights must be numbers, one for each of the {teachers} teachers, got {weights!r}") from None
    if given.dim() not in (1, 2) or given.shape[-1] != teachers:
        raise ValueError(
            f"weights must be one for each of the {teachers} teachers, [{teachers}] or [B, {teachers}], got shape "
            f"{list(given.shape)}"
        )
    total = given.sum(-1, keepdim=True)
    if not (given >= 0).all() or not given.isfinite().all() or not (total > 0).all():
        raise ValueError(f"weights must be numbers >= 0, of which one is above 0, got {given.tolist()}")
    return given / total


def mixed(
    parts: Sequence[tuple[Tensor | None, Tensor, Tensor]],
    rows: int,
    mean: Mean,
    alignment: Alignment,
    temperature: float,
) -> Tensor:
    """Returns the logits [rows, ..., width] of a mixture.

    Args:
        parts: Of each teacher: its rows [m] as indices (None is all of them), the weight [m] of each, and its logits
            [m, ..., V], which may be written into.
        rows: How many rows there are. Each is in a part of positive weight.
        mean: Which mean.
        alignment: The common vocabulary.
        temperature: At which the softmax will be taken.

    Returns:
        float32, aligned. Rows with one teacher have exactly its logits.
    """
    # A weight may round to 1 beside another one, so who is alone is counted.
    first = parts[0][1]
    teachers_of_row = torch.zeros(rows, dtype=torch.int64, device=first.device)
    for index, weight, _ in parts:
        teachers_of_row[slice(None) if index is None else index.to(first.device)] += (weight > 0).to(first.device)
    found: Tensor | None = None
    for index, weight, raw in parts:
        logits = alignment.canonical(raw, temperature, in_place=True).float()
        shape = (-1, *[1] * (logits.dim() - 1))
        share = weight.to(logits.device, torch.float32).view(shape)
        if mean == "geometric":
            part = torch.where(share == 0, 0.0, torch.where(share == 1, logits, share * logits))  # not 0 * -inf
        else:
            part = temperature * (share.log() + (logits / temperature).log_softmax(-1))
            here = teachers_of_row if index is None else teachers_of_row[index.to(first.device)]
            alone = (here == 1).to(logits.device).view(shape) & (share > 0)
            part = torch.where(alone, logits, part)
        if index is None and found is None:
            found = part
            continue
        if found is None:
            empty = 0.0 if mean == "geometric" else -math.inf
            found = part.new_full((rows, *part.shape[1:]), empty)
        every = slice(None) if index is None else index
        before = found[every]
        if mean == "geometric":
            found[every] = before + part
        else:
            both = temperature * torch.logaddexp(before / temperature, part / temperature)
            found[every] = torch.where(before == -math.inf, part, torch.where(part == -math.inf, before, both))
    assert found is not None
    return found
