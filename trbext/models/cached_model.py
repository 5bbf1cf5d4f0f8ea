"""Decodes with a Hugging Face causal LM and its KV cache, one token per row at a time."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Calling(NamedTuple):
    """The calls that a model needs while it decodes, which `model_check` finds out."""

    own_inputs: bool = False  # with its own `prepare_inputs_for_generation`, which caches of recurrent states may need
    drops_rows: bool = True  # whether rows may leave its cache


_callings: weakref.WeakKeyDictionary[torch.nn.Module, Calling] = weakref.WeakKeyDictionary()


def remember_calling(inner: PreTrainedModel, calling: Calling) -> None:
    """Makes every later `CachedModel` of this model call it so."""
    _callings[inner] = calling


class CachedModel:
    """A causal LM and its KV cache over a batch: `prefill` the prompts, `advance` by one token per row, `keep_rows`.

    Args:
        model: May be inside DDP, DeepSpeed, PEFT or torch.compile.
        calling: How to call it; None is what `remember_calling` was told.
    """

    def __init__(self, model: PreTrainedModel, *, calling: Calling | None = None) -> None:
        inner = unwrap(model)
        accepted = accepted_arguments(inner)
        self._calling = calling or _callings.get(inner, Calling())
        self.model = model
        self.cache: Any = None
        self.can_drop_rows = False
        self._takes_positions = "position_ids" in accepted
        self._cache_argument = cache_argument(inner)
        self._options: dict[str, int] = {"use_cache": True, "return_dict": True}
        if "logits_to_keep" in accepted:  # without it the prefill pays for [B, P, V] logits
            self._options["logits_to_keep"] = 1
        sdpa = inner.config._attn_implementation == "sdpa" and inner._supports_attention_backend
        self._prepares_mask = sdpa and not self._calling.own_inputs

    def prefill(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Feeds the prompts.

        Args:
            input_ids: [B, P] int64, left padded.
            attention_mask: [B, P] int64, 1 for tokens.

        Returns:
            The logits [B, V] after the prompts.

        Raises:
            RuntimeError: The model returns no KV cache.
        """
        from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

        logits = self._forward(input_ids, (attention_mask.cumsum(1) - 1).clamp(min=0), attention_mask)
        layers = getattr(self.cache, "layers", None)
        if layers is None:
            raise RuntimeError(
                f"lockstep needs a model that returns its KV cache as {self._cache_argument}, got "
                f"{type(self.cache).__name__} from {type(unwrap(self.model)).__name__} with use_cache=True"
            )
        # A linear-attention layer also holds recurrent states, which batch_select_indices does not select.
        self.can_drop_rows = self._calling.drops_rows and all(
            hasattr(layer, "batch_select_indices") and not isinstance(layer, LinearAttentionCacheLayerMixin)
            for layer in layers
        )
        self._prepares_mask &= all(type(layer) is DynamicLayer for layer in layers)
        return logits

    def advance(self, token: Tensor, position: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Feeds one more token per row.

        Args:
            token: [n] int64.
            position: [n, 1] int64, the position of the token in its row, padding not counted.
            attention_mask: [n, columns so far, this one included]; None if no row has padding.

        Returns:
            The logits [n, V] after the token.
        """
        if attention_mask is not None and self._prepares_mask:
            # Given [n, S], transformers asks whether any padding is left: a host read per model and token. Given the
            # shape that attention uses, it asks nothing. Sliding windows need a mask per layer, which it makes itself.
            attention_mask = attention_mask[:, None, None, :].bool()
        return self._forward(token[:, None], position, attention_mask)

    def keep_rows(self, rows: Tensor) -> None:
        """Drops all rows but `rows` [m] from the cache."""
        self.cache.batch_select_indices(rows)

    def _forward(self, input_ids: Tensor, position: Tensor, attention_mask: Tensor | None) -> Tensor:
        inputs: dict[str, Any] = {self._cache_argument: self.cache}
        if self._takes_positions:
            inputs["position_ids"] = position
        inputs |= {"attention_mask": attention_mask}
        if self._calling.own_inputs:
            prepare: Any = unwrap(self.model).prepare_inputs_for_generation
            inputs = prepare(input_ids, use_cache=True, is_first_iteration=self.cache is None, **inputs)
            inputs = {name: value for name, value in inputs.items() if name not in self._options}
        else:
            inputs["input_ids"] = input_ids
        output = self.model(**inputs, **self._options)
        self.cache = getattr(output, self._cache_argument, None)
        logits: Tensor = output.logits[:, -1]
        return logits.float() if logits.dtype == torch.float64 else logits  # the operators take no float64


def next_token_exists(model: PreTrainedModel, prefix: Tensor) -> bool:
    """Returns whether a token can be drawn after `prefix` [1, P]: the logits hold no NaN or +inf, and something
    finite."""
    # The maximum of the logits shows each of these.
    return bool(model(input_ids=prefix).logits[0, -1].amax().isfinite())


def accepted_arguments(inner: PreTrainedModel) -> Mapping[str, inspect.Parameter]:
    """Returns the arguments that the model's forward names."""
    return inspect.signature(type(inner).forward).parameters


def cache_argument(inner: PreTrainedModel) -> str:
    """Returns the name of the KV cache in the model's forward and its output.

    It is `cache` since transformers 5.24, and `past_key_values` before and in models of other origin.
    """
    accepted = accepted_arguments(inner)
    return "past_key_values" if "past_key_values" in accepted and "cache" not in accepted else "cache"


def unwrap(model: Any) -> Any:
    """Returns the transformers model inside DDP, DeepSpeed, PEFT or torch.compile, which hide its config or the
    signature of its forward."""
    inner = getattr(model, "module", model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return getattr(inner, "_orig_mod", inner)


def has_config(model: Any) -> bool:
    """Returns whether a model out of its wrappers has a configuration as transformers has them; nanoGPT's is of its
    own."""
    return hasattr(getattr(model, "config", None), "get_text_config")


def backbone(inner: PreTrainedModel) -> torch.nn.Module:
    """Returns the module that hands the last hidden states to the head; some classes (Llama 4) have no prefix for
    it."""
    base: torch.nn.Module = inner.base_model
    return base if base is not inner else getattr(inner, "model", base)
