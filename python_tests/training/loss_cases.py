"""Makes logits of a few prefixes, and computes the losses by a dense float64 reference."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS, VOCABULARY = 7, 23


def logits(seed: int = 0, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = 3 * torch.randn(2, ROWS, VOCABULARY, generator=generator, dtype=torch.float64)
    return pair[0].to(dtype).requires_grad_(), pair[1].to(dtype)


def dense_reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    p = (student.double() / temperature).softmax(-1)
    q = (teacher.double() / temperature).softmax(-1)
    return (p * (p / q).log()).sum(-1)


def gradient(loss: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), at)[0]
