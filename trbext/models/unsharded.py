"""Weights of a model under FSDP2 made whole while it decodes, in a trainer's or in one's own loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule


@contextmanager
def unsharded(model: torch.nn.Module, *, reshard_after_forward: bool = True) -> Iterator[None]:
    """The weights of a model under FSDP2's `fully_shard` gathered inside, sharded outside; nothing for other models.

    reshard_after_forward: what the model was sharded with, restored on leaving.
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
