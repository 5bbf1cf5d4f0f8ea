"""Cuts a batch to the first tokens of each completion, at which prefix distillation takes the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

# What a batch holds of each token of its completions: [B, C] or [B, C, ...].
OF_TOKENS = (
    *("completion_ids", "completion_mask", "tool_mask", "log_weight", "accepted", "teacher_states"),
    *("top_ids", "top_log_prob", "rest_log_prob", "teacher_log_prob"),
)


def cut_to_prefix(batch: dict[str, Any], tokens: int, accelerator: Accelerator) -> None:
    """Cuts a batch, so that neither the models nor the loss see what follows. Every process calls it.

    Args:
        batch: Is changed. Its number of items becomes that of the tokens that are left in the batches of all
            processes, so that the loss is a mean over them.
        tokens: The first so many of each completion are kept.
        accelerator: Of the run.
    """
    for name in OF_TOKENS:
        if name in batch:
            batch[name] = batch[name][:, :tokens]
    scored = batch["completion_mask"] * batch.get("tool_mask", 1)
    batch["num_items_in_batch"] = accelerator.gather(scored.sum()).sum()
