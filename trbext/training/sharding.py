"""Gathers the weights of sharded models (FSDP2, DeepSpeed ZeRO-3) for as long as a rollout takes.

Each forward of a sharded model gathers weights from all processes, so all must make equally many forwards. Rollouts end
after different numbers of tokens on different processes, which would wait for each other for ever. Gathering once,
before the first token, prevents this, and saves sending every weight again for every token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from trl.distributed import DistributedBackend
from trl.models import unwrap_model_for_generation

from ..models.unsharded import unsharded

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, Trainer
    from trl import DistillationConfig


def check_can_unshard(backend: DistributedBackend, args: DistillationConfig, *, tools: bool = False) -> None:
    """Checks that processes will not wait for each other for ever.

    Args:
        backend: Shards the models, or does not.
        args: Of the run.
        tools: Conversations call tools.

    Raises:
        ValueError: Rollouts would use sharded weights, or tool calls, of which each process makes its own number, would
            come between two gatherings of weights.
    """
    if tools and (backend.is_fsdp or backend.is_zero3):
        raise ValueError("tools give processes different numbers of turns, which FSDP and ZeRO-3 do not allow")
    if backend.fsdp_version == 1:
        raise ValueError(
            "rollouts need whole weights, which FSDP1 does not give outside its forward: use fsdp_version 2"
        )
    if backend.is_zero3 and not args.ds3_gather_for_generation:
        raise ValueError("rollouts need whole weights: with DeepSpeed ZeRO-3 set ds3_gather_for_generation=True")


@contextmanager
def whole_for_decoding(
    model: torch.nn.Module, accelerator: Accelerator, args: DistillationConfig
) -> Iterator[PreTrainedModel]:
    """Yields `model` out of its wrappers, with its weights gathered on every process.

    All processes enter and leave together.

    Args:
        model: Wrapped by the accelerator.
        accelerator: Of the run.
        args: Of the run.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    with (
        unwrap_model_for_generation(
            model,
            accelerator,
            gather_deepspeed3_params=args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        ) as unwrapped,
        unsharded(unwrapped, reshard_after_forward=plugin is None or plugin.reshard_after_forward),
        _without_deepspeed_hooks(unwrapped),
    ):
        yield unwrapped


@contextmanager
def _without_deepspeed_hooks(model: torch.nn.Module) -> Iterator[None]:
    """Takes ZeRO-3's hook off the whole model inside.

    In each forward the hook compares its step with the other processes, and waits for ever for a process that has
    decoded fewer tokens. TRL takes off only the hooks of the submodules.
    """
    hooks = model._forward_pre_hooks
    kept = {key: hook for key, hook in hooks.items() if getattr(hook, "__module__", "").startswith("deepspeed")}
    for key in kept:
        del hooks[key]
    try:
        yield
    finally:
        later = dict(hooks)
        hooks.clear()
        hooks.update(kept | later)  # its hook runs first, before those of the submodules


def save_whole_model(trainer: Trainer, folder: str) -> bool:
    """Saves the whole weights if transformers would save none. Every process calls it.

    That is under FSDP with sharded checkpoints, and under ZeRO-3 without stage3_gather_16bit_weights_on_model_save.

    Args:
        trainer: Of the run.
        folder: Of the weights; it exists.

    Returns:
        Whether the weights were saved; if not, nothing was done.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        weights = trainer.accelerator.get_state_dict(trainer.model)
    elif (
        trainer.is_deepspeed_enabled
        and trainer.deepspeed is not None
        and trainer.deepspeed.zero_optimization_stage() == 3
    ):
        weights = trainer.deepspeed._zero3_consolidated_16bit_state_dict()
    else:
        return False
    if trainer.args.should_save:
        trainer._save(folder, state_dict=weights)
    return True
