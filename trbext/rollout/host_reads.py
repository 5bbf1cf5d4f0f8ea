"""What every way of decoding shares: checks of its arguments, eval mode, host reads, and the error of a row at
fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import NonFiniteLogits
from ..models.cached_model import next_token_exists

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RUNNING, ENDED, FAULT = 0, 1, 2  # what is known of a row, from its first event on


def next_host_read(generated: int) -> int:
    """How many tokens to have generated when the host next asks which rows ended: an eighth more, by steps of 4 to 32.
    A row is then decoded at most that far beyond its end."""
    return generated + min(32, max(4, generated // 8))


def host_read(status: Tensor) -> Tensor:
    """`status` on the CPU: the only place where decoding waits for the GPU."""
    return status.cpu()


def raise_fault(
    state: Tensor, rows: Tensor, prompts: tuple[Tensor, Tensor], tokens: Tensor, models: list[PreTrainedModel]
) -> None:
    """Name the first row at fault, if there is one, and the model to blame.

    The operator has told that a row is at fault; whose logits they were is found out by one more forward of the prefix,
    which costs nothing while all is well.
    """
    faulty = (state == FAULT).nonzero()[:, 0]
    if len(faulty) == 0:
        return
    row = int(rows[faulty[0]])
    step = int((tokens[row] < 0).int().argmax())
    input_ids, mask = prompts
    prefix = torch.cat([input_ids[row][mask[row] != 0], tokens[row, :step]])[None]
    culprits = [
        name
        for name, model in zip(("student", "teacher"), models, strict=False)
        if not next_token_exists(model, prefix)
    ]
    whose = " and ".join(f"the {name}" for name in culprits) or "both models together"
    raise NonFiniteLogits(
        f"row {row}, step {step}: no token can be drawn, the logits of {whose} hold NaN, +inf or no finite value "
        f"({len(faulty)} of {len(state)} rows at fault)"
    )
