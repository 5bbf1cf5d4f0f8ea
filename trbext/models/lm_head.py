"""Turns the last hidden states of a causal language model into logits, by its head, scale and softcap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from trl.trainer.utils import maybe_gather_lm_head_ctx

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Head(Protocol):
    """Turns states [N, H] of a model into its logits [N, V], float32 or wider."""

    @property
    def device(self) -> torch.device: ...

    @property
    def vocabulary(self) -> int: ...

    def detached(self, device: torch.device) -> Head: ...

    def __call__(self, hidden: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class LMHead:
    """The head of a causal language model, with what its configuration does to the logits."""

    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    scale: float  # multiplies the logits (Cohere, Granite)
    softcap: float | None  # softcap * tanh(logits / softcap), after the scale (Gemma)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.weight.device

    @property
    def vocabulary(self) -> int:
        """How many logits it makes of a state."""
        return int(self.weight.shape[0])

    def __call__(self, hidden: Tensor) -> Tensor:
        """Returns the logits [N, V], float32 or wider, of the hidden states [N, H]."""
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        logits = torch.nn.functional.linear(hidden, self.weight.to(hidden.dtype), bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.scale
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()

    def detached(self, device: torch.device) -> LMHead:
        """Returns the head with its weights on `device`, which stay there when those of its model leave."""
        weight, bias = (None if x is None else x.detach().to(device) for x in (self.weight, self.bias))
        assert weight is not None
        return LMHead(weight, bias, self.scale, self.softcap)

    def narrowed(self, width: int) -> LMHead:
        """Returns the head of the first `width` tokens: padding rows past the common vocabulary never reach the
        softmax."""
        if width == self.weight.shape[0] or hasattr(self.weight, "ds_id"):
            return self  # ZeRO-3 shards to shape [0] and knows a weight by identity; TRL's loss gathers it
        bias = None if self.bias is None else self.bias[:width]
        return LMHead(self.weight[:width], bias, self.scale, self.softcap)


# Gemma, RecurrentGemma, xLSTM
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def lm_head(model: PreTrainedModel, *, gather_zero3: bool = True) -> LMHead:
    """Returns the head of `model`, with the scale and softcap that its configuration declares.

    Sharded weights (FSDP2, ZeRO-3) are gathered once here rather than once per chunk, with their gradient.

    Args:
        model: Out of DDP, DeepSpeed and PEFT.
        gather_zero3: Gathers the weights of ZeRO-3; False leaves them to TRL's fused loss, which gathers them itself.
    """
    head: Any = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):  # Cohere, Muse Glimmer, Falcon-H1
        if getattr(config, name, None) is not None:
            scale = float(getattr(config, name))
            break
    else:
        scaling = getattr(config, "logits_scaling", None)
        if scaling is not None:  # Granite and MiniCPM3 divide, HyperCLOVA X multiplies
            scale = float(scaling) if config.model_type == "hyperclovax" else 1 / float(scaling)
        elif getattr(config, "logits_mup_width_multiplier", None) is not None:  # Inkling
            scale = 1 / float(config.logits_mup_width_multiplier)

    def gathered(parameter: Tensor | None) -> Tensor | None:
        if isinstance(parameter, DTensor):
            return parameter.full_tensor()
        # ZeRO-3 leaves a parameter empty outside its module's forward.
        if parameter is not None and gather_zero3 and hasattr(parameter, "ds_id"):
            with maybe_gather_lm_head_ctx(parameter):
                return parameter.clone()
        return parameter

    weight = gathered(head.weight)
    assert weight is not None
    softcaps = (getattr(config, name, None) for name in SOFTCAPS)
    return LMHead(
        weight, gathered(getattr(head, "bias", None)), scale, next((cap for cap in softcaps if cap is not None), None)
    )


def excludes_tokens(model: PreTrainedModel) -> bool:
    """Returns whether the lm_head of `model` gives a token the logit -inf, by its bias."""
    head: Any = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    return isinstance(bias, Tensor) and not bias.is_meta and bool(torch.isneginf(bias).any())
