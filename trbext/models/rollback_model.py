"""Decodes with a causal LM whose KV cache can take tokens back row by row, as rejected drafts need.

Keys and values are in buffers [B, heads, columns, head_dim] that are allocated ahead. A left-padded prompt of L tokens
ends at column P - 1, and the token at position p of the row is at column p + P - L from then on. Tokens are taken back
by writing the next ones over them: nothing is copied or compacted, and no column is wasted, whatever rows have
rejected. A mask of the shape that attention uses, [B, 1, q, columns], says which columns it may see, and positions are
explicit.

A layer with a sliding window keeps all columns here, and its mask shows it the window: transformers' own cache would
drop what a token that is taken back has pushed out. A recurrent state cannot be taken back at all; `cannot_roll_back`
says which models have one.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from .cached_model import cache_argument, unwrap
from .precision import precision_observed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FULL, SLIDING = "full_attention", "sliding_attention"  # as `config.layer_types` and a mask for each call them
LONGEST_TRIED = 1024  # a window up to this is crossed when a model is tried; wider ones cost too much
MASKED_ATTENTION = ("sdpa", "eager")  # implementations that take a mask of the attention's own shape


class _Slots:
    """The columns to which the next forward writes, the same in every layer."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity  # columns
        self.seen = 0  # columns that attention sees in the next forward
        # The places of its keys and values, [B, 1] and [B, q].
        self.rows = torch.empty(0)
        self.columns = torch.empty(0)
        self.first: int | None = None  # the first of these columns, if it is known to be the same in all rows


class _RollbackLayer(CacheLayerMixin):
    """Keys and values of one layer, written at the columns that `slots` gives."""

    keys: Tensor
    values: Tensor

    def __init__(self, slots: _Slots) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros: attention multiplies what it does not see by 0, and 0 * NaN is not 0.
        self.keys, self.values = (
            states.new_zeros((*states.shape[:2], self.slots.capacity, states.shape[3]))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, columns, seen, first = self.slots.rows, self.slots.columns, self.slots.seen, self.slots.first
        if first is not None:  # scattering costs a few percent of a step at batch 1
            self.keys[:, :, first : first + columns.shape[1]] = key_states
            self.values[:, :, first : first + columns.shape[1]] = value_states
        else:
            self.keys[rows, :, columns] = key_states.transpose(1, 2)
            self.values[rows, :, columns] = value_states.transpose(1, 2)
        return self.keys[:, :, :seen], self.values[:, :, :seen]

    def get_seq_length(self) -> int:
        return self.slots.seen if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return max(self.get_seq_length(), query_length), 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in transformers 5.5, in which it is abstract

    def grow(self, columns: int) -> None:
        more = columns - self.keys.shape[2]
        self.keys, self.values = (
            torch.nn.functional.pad(states, (0, 0, 0, more)) for states in (self.keys, self.values)
        )

    def batch_select_indices(self, indices: Tensor) -> None:
        self.keys, self.values = self.keys[indices], self.values[indices]


class RollbackModel:
    """A causal LM and its KV cache over a batch: `extend` at any columns, `keep_rows`.

    Args:
        model: May be inside DDP, DeepSpeed, PEFT or torch.compile.
        first: [B, 1] int64, the column of the first token of each row; the columns before it are padding.
        capacity: Columns to allocate at first; more are allocated when they are needed.
    """

    def __init__(self, model: PreTrainedModel, first: Tensor, capacity: int) -> None:
        inner = unwrap(model)
        self.model = model
        self._limits_logits = "logits_to_keep" in inspect.signature(type(inner).forward).parameters
        self._cache_argument = cache_argument(inner)
        self._windows = _windows(inner)
        self._additive_mask = inner.config._attn_implementation == "eager"
        self._first = first
        self._slots = _Slots(capacity)
        layer: Any = functools.partial(_RollbackLayer, self._slots)  # called without arguments, once for each layer
        self._cache: Any = Cache(layer_class_to_replicate=layer)

    def extend(
        self,
        tokens: Tensor,
        columns: Tensor,
        seen: int,
        *,
        logits: int,
        level: bool = False,
        padded: bool = True,
        last_position: Tensor | None = None,
    ) -> Tensor:
        """Feeds tokens at given columns. To write over a column takes back what it and all later columns held.

        Args:
            tokens: [B, q] int64.
            columns: [B, q] int64, in increasing order per row.
            seen: Columns that exist for the farthest row, this forward included; known to the host.
            logits: How many of the last tokens need logits.
            level: The columns are the last q of the seen ones in all rows. If no row is `padded` either, one token and
                a prompt need no mask.
            padded: Whether any row has padding.
            last_position: [B, 1] int64, an upper bound for positions, also of tokens that will be dropped, because
                tables of positions have an end.

        Returns:
            The logits [B, logits, V] after the last tokens.
        """
        if seen > self._slots.capacity:
            self._slots.capacity = max(seen, self._slots.capacity * 3 // 2)
            for layer in self._cache.layers:
                layer.grow(self._slots.capacity)
        if not level:  # once, not in each layer: at batch 1 such small tensors cost a few percent of a step
            self._slots.rows = torch.arange(len(columns), device=columns.device)[:, None]
        self._slots.columns, self._slots.seen = columns, seen
        q = tokens.shape[1]
        self._slots.first = seen - q if level else None
        unmasked = level and not padded and q in (1, seen) and not any(self._windows.values())
        positions = (columns - self._first).clamp(min=0)
        if last_position is not None:
            positions = torch.minimum(positions, last_position)
        options: dict[str, Any] = {self._cache_argument: self._cache}
        if self._limits_logits:
            options["logits_to_keep"] = logits
        output = self.model(
            input_ids=tokens,
            attention_mask=None if unmasked else self._masks(columns, seen),
            position_ids=positions,
            use_cache=True,
            return_dict=True,
            **options,
        )
        kept: Tensor = output.logits[:, -logits:]
        return kept.float() if kept.dtype == torch.float64 else kept  # the operators take no float64

    def _masks(self, columns: Tensor, seen: int) -> Tensor | dict[str, Tensor]:
        """Returns one mask, or one for each kind of layer if there are two."""
        masks = {kind: self._mask(columns, seen, window) for kind, window in self._windows.items()}
        return masks if len(masks) > 1 else masks.popitem()[1]

    def _mask(self, columns: Tensor, seen: int, window: int | None) -> Tensor:
        """Returns [B, 1, q, seen]: the tokens of the row up to each one, or the last `window` of them.

        Padding sees itself, because the softmax of a token that sees nothing has no value.
        """
        every, own = torch.arange(seen, device=columns.device), columns[..., None]
        mask = (((every >= self._first)[:, None] & (every <= own)) | (every == own))[:, None]
        if window is not None:
            mask = mask & (every > own - window)[:, None]
        if not self._additive_mask:
            return mask
        dtype = unwrap(self.model).dtype
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)

    def keep_rows(self, rows: Tensor) -> None:
        """Drops all rows but `rows` [m]."""
        self._first = self._first[rows]
        for layer in self._cache.layers:
            layer.batch_select_indices(rows)


_results: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()


def cannot_roll_back(model: PreTrainedModel) -> str | None:
    """Returns the reason why tokens cannot be taken back from the model's KV cache, with its class; None if they can.

    Each model is asked once: by what it declares, and then by a trial on a few tokens, since a model may compute
    positions or masks of its own. Call it in eval mode and without gradients.
    """
    inner = unwrap(model)
    if inner not in _results:
        reason = _declared(inner) or _tried(model)
        _results[inner] = f"{type(inner).__name__} {reason}" if reason else ""
    return _results[inner] or None


def _windows(inner: PreTrainedModel) -> dict[str, int | None]:
    """Returns the window of each kind of layer, by its name in `config.layer_types`; None if it sees the whole
    prefix."""
    layers = DynamicCache(config=inner.config.get_text_config()).layers
    return {
        SLIDING if isinstance(layer, DynamicSlidingWindowLayer) else FULL: getattr(layer, "sliding_window", None)
        for layer in layers
    } or {FULL: None}


def _declared(inner: PreTrainedModel) -> str | None:
    accepted = inspect.signature(type(inner).forward).parameters
    missing = {"position_ids", "attention_mask", cache_argument(inner)} - set(accepted)
    if missing:
        return f"takes no {' and no '.join(sorted(missing))}"
    config = inner.config.get_text_config()
    kinds = {type(layer).__name__ for layer in DynamicCache(config=config).layers}
    if kinds - {DynamicLayer.__name__, DynamicSlidingWindowLayer.__name__}:
        return f"has a cache of {', '.join(sorted(kinds))}"
    others = set(getattr(config, "layer_types", None) or ()) - {FULL, SLIDING}
    if others or (getattr(config, "attention_chunk_size", None) and DynamicSlidingWindowLayer.__name__ in kinds):
        return f"has layers of {', '.join(sorted(others)) or 'chunked_attention'}"
    attention = inner.config._attn_implementation
    if attention not in MASKED_ATTENTION or not inner._supports_attention_backend:
        return f"runs attention {attention!r}, and only {' and '.join(MASKED_ATTENTION)} take a mask per token"
    return None


def _tried(model: PreTrainedModel) -> str | None:
    """Compares rows of different length, one of which takes a token back, with forwards without a cache."""
    inner = unwrap(model)
    device, vocab = inner.device, inner.config.get_text_config().vocab_size
    lead = min([window - 2 for window in _windows(inner).values() if window and 2 < window <= LONGEST_TRIED], default=0)
    one, two = ((torch.arange(lead + 5, device=device) * step + 1) % vocab for step in (7, 11))
    first, columns = torch.tensor([[0], [1]], device=device), torch.arange(lead + 6, device=device)[None]
    begin = lead + 2
    try:
        with precision_observed(inner) as precise:
            cached = RollbackModel(model, first, capacity=4)
            prompts = torch.stack([one[:begin], two[:begin]])
            cached.extend(prompts, columns[:, :begin].expand(2, begin), seen=begin, logits=1)
            drafts = torch.stack([one[[begin, 0]], two[begin : begin + 2]])
            cached.extend(drafts, columns[:, begin : begin + 2].expand(2, 2), seen=begin + 2, logits=2)
            follow = torch.stack([one[begin + 1 :], two[[begin + 2, 0]]])  # the first row takes its second token back
            places = torch.cat([columns[:, begin + 1 : begin + 3], columns[:, begin + 2 :]])
            logits = cached.extend(follow, places, seen=begin + 4, logits=2)[:, -1]
            rows = (one, torch.cat([two[1:], two[:1]]))
            plain = [model(input_ids=ids[None], use_cache=False).logits[0, -1] for ids in rows]
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"does not take the cache: {' '.join(str(error).split())}"
    expected = torch.stack(plain).float()
    if not expected.isfinite().all():
        return None  # nothing to compare; the rollout itself names rows without finite logits
    tolerance = 1e-3 if precise[0] else 0.15
    difference = (logits.float() - expected).abs().max() / expected.std().clamp(min=1e-6)
    if difference < tolerance:
        return None
    return f"gives other logits after a token was taken back, by {float(difference):.2g} of their spread"
