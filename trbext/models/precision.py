"""Observes whether a model computes in float32, or so coarsely that equal logits may differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def precision_observed(inner: Any) -> Iterator[list[bool]]:
    """Yields a list whose only entry says whether the forwards of a model inside compute in float32 or wider.

    The autocast of a trainer is inside the model's own forward, so it can be observed only from there.

    Args:
        inner: Of transformers, out of DDP and PEFT.
    """
    kind = inner.device.type
    precise = [inner.dtype in (torch.float32, torch.float64) and not _is_quantized(inner)]
    if inner.dtype == torch.float32 and not _multiplies_in_float32():
        precise[0] = False

    def look(*_: Any) -> None:
        precise[0] &= not torch.is_autocast_enabled(kind)

    handle = inner.get_input_embeddings().register_forward_pre_hook(look)
    try:
        yield precise
    finally:
        handle.remove()


def _multiplies_in_float32() -> bool:
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # torch cannot put what its newer setting fp32_precision says in the words of this one
        return False


def _is_quantized(inner: Any) -> bool:
    """Returns whether a layer has integer weights. It may round its input by what else is in the batch."""
    packages = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao", "bitsandbytes")
    parts = (part for module in inner.modules() for part in (module, getattr(module, "weight", None)))
    return any(type(part).__module__.startswith(packages) for part in parts)
