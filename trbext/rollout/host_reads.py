"""Reads the state of a rollout's rows from the device, rarely, and raises the error of a row at fault."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import NonFiniteLogits
from ..models.cached_model import next_token_exists
from ..models.next_token import TopKTeacher, as_next_token_model, is_transformers

RUNNING, ENDED, FAULT = 0, 1, 2  # the status of a row, which its first event decides


def next_host_read(generated: int) -> int:
    """Returns the number of generated tokens at which the host next asks which rows have ended.

    It is an eighth more than `generated`, and 4 to 32 tokens more. A row is decoded at most that far beyond its end.
    """
    return generated + min(32, max(4, generated // 8))


def host_read(status: Tensor) -> Tensor:
    """Copies `status` to the CPU: the only place at which decoding waits for the GPU."""
    return status.cpu()


def raise_fault(
    state: Tensor, rows: Tensor, prompts: tuple[Tensor, Tensor], tokens: Tensor, models: list[tuple[str, Any]]
) -> None:
    """Raises an error that names the first row at fault, if there is one, and the model whose logits are at fault.

    The operator tells only that a row is at fault. One more forward of the prefix tells whose logits they were, and is
    made in this case only.

    Args:
        state: [n] int64 on the CPU, the status of each row that is still decoded.
        rows: [n] int64, the index of each of these rows in the original batch.
        prompts: Token ids and mask of the original batch, [B, P] each.
        tokens: [B, max_new_tokens] int64, -1 at the token of a fault.
        models: Names and models: the student, and the teachers if they are needed.

    Raises:
        NonFiniteLogits: A row is at fault.
    """
    faulty = (state == FAULT).nonzero()[:, 0]
    if len(faulty) == 0:
        return
    row = int(rows[faulty[0]])
    token = int((tokens[row] < 0).int().argmax())
    input_ids, mask = prompts
    prefix = torch.cat([input_ids[row][mask[row] != 0], tokens[row, :token]])[None]
    culprits = [name for name, model in models if not _next_token_exists(model, name, prefix)]
    whose = " and ".join(f"the {name}" for name in culprits) or "both models together"
    raise NonFiniteLogits(
        f"row {row}, token {token}: no token can be drawn, the logits of {whose} hold NaN, +inf or no finite value "
        f"({len(faulty)} of {len(state)} rows at fault)"
    )


def _next_token_exists(model: Any, name: str, prefix: Tensor) -> bool:
    if is_transformers(model):
        return next_token_exists(model, prefix)
    if isinstance(model, TopKTeacher):
        return True  # `checked_top` has looked at its answers
    logits, _ = as_next_token_model(model, name).prefill(prefix, torch.ones_like(prefix))
    return bool(logits.amax().isfinite())
