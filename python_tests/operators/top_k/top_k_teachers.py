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
