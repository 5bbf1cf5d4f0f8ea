"""Makes top-k teachers of rows of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from trbext import TopK


def top_k_of(logits: Tensor, k: int, temperature: float | Tensor = 1.0) -> TopK:
    """Returns the k most probable tokens of each row of logits [..., V], whose log-probabilities are at `temperature`,
    one number or [..., 1]."""
    values, ids = (logits.double() / temperature).log_softmax(-1).topk(k)
    return TopK(ids, values.float())


def teacher(ids: list[list[int]], probabilities: list[list[float]]) -> TopK:
    return TopK(torch.tensor(ids), torch.tensor(probabilities, dtype=torch.float64).log().float())


def rows_with_a_block_of_little_mass() -> tuple[Tensor, TopK]:
    """Returns rows whose first 1,024 tokens have a mass from e^-593 to e^-793, across the subnormal numbers of float64
    (e^-708 to e^-745)."""
    logits = torch.tensor([-600.0, -730.0, -738.0, -740.0, -742.0, -746.0, -800.0])
    student = torch.zeros(len(logits), 2048)
    student[:, :1024] = logits[:, None]
    return student, TopK(torch.full((len(logits), 1), 2000), torch.full((len(logits), 1), -2.0))
