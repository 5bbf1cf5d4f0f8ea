"""Gathers the weights of a model under FSDP2 while it decodes, in a trainer or in a loop of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule


@contextmanager
def unsharded(model: torch.nn.Module, *, reshard_after_forward: bool = True) -> Iterator[None]:
    """Gathers the weights of a model under FSDP2's `fully_shard` inside, and shards them again on leaving.

    Other models are left as they are.

    Args:
        model: The whole model, or one with parts that are sharded.
        reshard_after_forward: That with which the model was sharded, restored on leaving.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(reshard_after_forward, recurse=False)
            part.reshard()
