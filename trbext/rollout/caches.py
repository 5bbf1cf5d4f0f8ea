"""Opens a KV cache, or what stands for one, of any student or teacher: transformers' models, others, and mixtures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.cached_model import CachedModel
from ..models.next_token import NextTokenCache, TopKTeacher, as_next_token_model, is_transformers
from ..teachers.mixture import Mean, Mixture, mixed
from ..vocab import Alignment

if TYPE_CHECKING:
    from .decoding import Decoding


def named_models(name: str, model: Any) -> list[tuple[str, Any]]:
    """Returns the models of which `model` consists, with their names: more than one of a mixture."""
    if not isinstance(model, Mixture):
        return [(name, model)]
    return [(f"{name} {number}", each) for number, each in enumerate(model.teachers, 1)]


def lockstep_caches(decoding: Decoding) -> list[Any]:
    """Returns a cache with the interface of `CachedModel` for each model of a rollout."""
    return _caches(decoding, _opened_for_lockstep)


def rollback_caches(decoding: Decoding, first: Tensor, capacity: int) -> list[Any]:
    """Returns a cache with the interface of `RollbackModel` for each model of a rollout.

    Args:
        decoding: The arguments of the rollout.
        first: [B, 1] int64, the column of each row's first token.
        capacity: Columns to allocate at first.
    """
    from ..models.rollback_model import RollbackModel  # which needs transformers

    def opened(name: str, model: Any, rows: Tensor | None) -> Any:
        begin = first if rows is None else first[rows]
        if is_transformers(model):
            return RollbackModel(model, begin, capacity)
        return NextTokenCache(as_next_token_model(model, name), name, begin)

    return _caches(decoding, opened)


def cannot_take_back(model: Any) -> str | None:
    """Returns the reason why tokens cannot be taken back from a model, of a mixture from one of its teachers; or
    None."""
    for _, each in named_models("", model):
        if is_transformers(each):
            from ..models.rollback_model import cannot_roll_back  # which needs transformers

            reason = cannot_roll_back(each)
            if reason is not None:
                return reason
    return None


def one_lockstep_cache(
    name: str, model: Any, rows: int, alignment: Alignment, temperature: float, device: torch.device
) -> Any:
    """Returns a cache with the interface of `CachedModel` for one model and a batch of so many rows."""
    return _cache(name, model, rows, alignment, temperature, device, _opened_for_lockstep)


def _opened_for_lockstep(name: str, model: Any, rows: Tensor | None) -> Any:
    return CachedModel(model) if is_transformers(model) else NextTokenCache(as_next_token_model(model, name), name)


def _caches(decoding: Decoding, opened: Callable[[str, Any, Tensor | None], Any]) -> list[Any]:
    batch, device = len(decoding.prompts), decoding.device
    return [
        _cache(name, model, batch, decoding.alignment, decoding.temperature, device, opened)
        for name, model in zip(("student", "teacher"), decoding.models, strict=False)
        if not isinstance(model, TopKTeacher)  # which is asked by `KnownTop`
    ]


def _cache(
    name: str,
    model: Any,
    rows: int,
    alignment: Alignment,
    temperature: float,
    device: torch.device,
    opened: Callable[[str, Any, Tensor | None], Any],
) -> Any:
    if not isinstance(model, Mixture):
        return opened(name, model, None)
    weights = model.weights
    if weights.dim() == 2 and len(weights) != rows:
        raise ValueError(f"a mixture has weights of {len(weights)} rows, and the batch has {rows} prompts")
    parts = [
        _Part.of(opened, f"{name} {number + 1}", each, weights[..., number], device)
        for number, each in enumerate(model.teachers)
    ]
    return MixedCache(parts, rows, model.mean, alignment, temperature)


class _Part:
    """The cache of one teacher of a mixture, and the rows that it reads."""

    def __init__(self, cache: Any, rows: list[int] | None, weight: Tensor) -> None:
        self.cache = cache
        self.rows = rows  # of the batch, on the host; None is all of them
        self.weight = weight  # [m], of its rows; [] of all
        self.index: Tensor | None = None if rows is None else torch.tensor(rows, device=weight.device)

    @classmethod
    def of(cls, opened: Callable[..., Any], name: str, model: Any, weight: Tensor, device: torch.device) -> _Part:
        if weight.dim() == 0:
            called = bool(weight > 0)
            return cls(opened(name, model, None) if called else None, None if called else [], weight.to(device)[None])
        rows: list[int] = weight.nonzero()[:, 0].tolist()
        index = torch.tensor(rows, device=device)
        return cls(opened(name, model, index) if rows else None, rows, weight[rows].to(device))

    def taken(self, values: Tensor | None) -> Tensor | None:
        """Returns its rows of `values` [n, ...]."""
        return values if values is None or self.index is None else values[self.index]

    def keep(self, kept: list[int]) -> None:
        """Drops the rows that are not among `kept`, of the batch; the others are counted anew."""
        if self.cache is None or self.rows is None:
            return
        place = {row: number for number, row in enumerate(kept)}
        stays = [number for number, row in enumerate(self.rows) if row in place]
        dropped = len(stays) < len(self.rows)
        self.rows = [place[self.rows[number]] for number in stays]
        if not stays:
            self.cache = None
            return
        self.index = torch.tensor(self.rows, device=self.weight.device)
        if dropped:
            keep = torch.tensor(stays, device=self.weight.device)
            self.weight = self.weight[keep]
            self.cache.keep_rows(keep)


class MixedCache:
    """The caches of a mixture's teachers as one, whose logits are those of the mixture."""

    def __init__(self, parts: Sequence[_Part], rows: int, mean: Mean, alignment: Alignment, temperature: float) -> None:
        self._parts, self._rows = parts, rows
        self._mean, self._alignment, self._temperature = mean, alignment, temperature

    @property
    def can_drop_rows(self) -> bool:
        """Whether rows can leave all caches."""
        return all(part.cache.can_drop_rows for part in self._parts if part.cache is not None)

    def prefill(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """As `CachedModel.prefill`."""
        return self._mixed(lambda part: part.cache.prefill(part.taken(input_ids), part.taken(attention_mask)))

    def advance(self, token: Tensor, position: Tensor, attention_mask: Tensor | None) -> Tensor:
        """As `CachedModel.advance`."""
        return self._mixed(
            lambda part: part.cache.advance(part.taken(token), part.taken(position), part.taken(attention_mask))
        )

    def extend(
        self, tokens: Tensor, columns: Tensor, seen: int, *, last_position: Tensor | None = None, **options: Any
    ) -> Tensor:
        """As `RollbackModel.extend`."""
        return self._mixed(
            lambda part: part.cache.extend(
                part.taken(tokens), part.taken(columns), seen, last_position=part.taken(last_position), **options
            )
        )

    def keep_rows(self, rows: Tensor) -> None:
        """Drops all rows but `rows` [m]."""
        kept = rows.tolist()  # at a host read of the rollout, which has waited for the device already
        self._rows = len(kept)
        for part in self._parts:
            if part.rows is None:
                part.cache.keep_rows(rows)
            else:
                part.keep(kept)

    def _mixed(self, logits: Callable[[_Part], Tensor]) -> Tensor:
        parts = [(part.index, part.weight, logits(part)) for part in self._parts if part.cache is not None]
        return mixed(parts, self._rows, self._mean, self._alignment, self._temperature)
