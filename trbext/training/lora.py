"""Makes the LoRA adapter of a run, and saves a student with its adapter merged into its weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import TRBConfig

if TYPE_CHECKING:
    from .trainer import TRBTrainer


def lora(rank: int, config: TRBConfig) -> Any:
    """Returns PEFT's configuration of an adapter on all linear layers but the lm_head, scaled by alpha = 2 rank.

    Args:
        rank: Of the adapter.
        config: Of the run.

    Raises:
        ValueError: PEFT is not installed, the student has an adapter already, or shards of weights would be merged.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError(f"lora_rank={rank} needs peft, which is not installed: pip install peft")
    if config.teaches_itself:
        raise ValueError(f"the student of the teacher 'self' is an adapter already, got lora_rank={rank}: leave it out")
    if config.fsdp or config.deepspeed or getattr(config, "deepspeed_plugin", None) is not None:
        raise ValueError(
            f"lora_rank={rank} merges whole weights, and FSDP and DeepSpeed shard them: train without them"
        )
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def save_merged(trainer: TRBTrainer, folder: Path) -> None:
    """Saves the trained student with its adapter merged, and its tokenizer, on the main process only."""
    if not trainer.is_world_process_zero():
        return
    merged: Any = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    merged.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
