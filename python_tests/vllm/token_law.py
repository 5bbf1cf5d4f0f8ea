"""Computes mu after any prefix in float64, from transformers' models and by a bisection of its own.

It shares no code with trbext's solvers. The vocabulary is aligned in probabilities here, not in logits: the mass of
every EOS id is added to that of the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from trbext.vocab import Alignment

HALVINGS = 60


@dataclass(frozen=True)
class Distributions:
    """What holds after each of some prefixes, in float64."""

    student: Tensor  # [..., V] log pi_S, nats; -inf at ids that are merged into another
    teacher: Tensor  # [..., V] log pi_T
    mu: Tensor  # [..., V] log mu
    beta: Tensor  # [...]
    kl: Tensor  # [...] KL(mu, pi_S), nats


class TokenLaw:
    """The law of tokens of a pair of models.

    Args:
        teacher: Folder of its weights.
        student: Folder of its weights.
        alignment: The vocabulary that both models share.
    """

    def __init__(self, teacher: Path, student: Path, alignment: Alignment) -> None:
        self.alignment = alignment
        self._student, self._teacher = (
            LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval() for folder in (student, teacher)
        )

    @torch.no_grad()
    def along(
        self, sequences: Tensor, begin: int, *, epsilon: float | Tensor, temperature: float = 1.0
    ) -> Distributions:
        """The distributions of the tokens from place `begin` on, and of the token that would follow the last.

        Args:
            sequences: [n, L] int64, prompts with completions, all of one length.
            begin: The place of the first token, at least 1.
            epsilon: KL budget in nats per token, one for all or [n].
            temperature: Above 0.

        Returns:
            Distributions of shape [n, L - begin + 1, V].
        """
        student, teacher = (
            self._log_probs(model(sequences, use_cache=False).logits[:, begin - 1 :], temperature)
            for model in (self._student, self._teacher)
        )
        budget = torch.as_tensor(epsilon, dtype=torch.float64).reshape(-1, 1).expand(student.shape[:2])
        return blend_by_bisection(student, teacher, budget)

    def after(self, prefixes: Tensor, *, epsilon: float, temperature: float = 1.0) -> Distributions:
        """The distributions, [n, V], of the token after each of the prefixes [n, L]."""
        found = self.along(prefixes, prefixes.shape[1], epsilon=epsilon, temperature=temperature)
        return Distributions(found.student[:, 0], found.teacher[:, 0], found.mu[:, 0], found.beta[:, 0], found.kl[:, 0])

    def _log_probs(self, logits: Tensor, temperature: float) -> Tensor:
        probs = (logits[..., : self.alignment.width] / temperature).softmax(-1)
        for token in self.alignment.duplicates:
            probs[..., self.alignment.stop] += probs[..., token]
            probs[..., token] = 0.0
        return probs.log()


def blend_by_bisection(student: Tensor, teacher: Tensor, epsilon: Tensor) -> Distributions:
    """mu of the largest beta in [0, 1] with KL(mu, pi_S) <= epsilon.

    Args:
        student: [..., V] float64 log pi_S.
        teacher: [..., V] float64 log pi_T, -inf at the same tokens.
        epsilon: [...] float64, nats; 0 is the student, infinity the teacher.
    """
    low, high = torch.zeros_like(epsilon), torch.ones_like(epsilon)
    whole = (blend(student, teacher, high)[1] <= epsilon) & (epsilon > 0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        within = blend(student, teacher, middle)[1] <= epsilon
        low, high = torch.where(within, middle, low), torch.where(within, high, middle)
    beta = torch.where(whole, 1.0, torch.where(epsilon > 0, low, 0.0))
    mu, kl = blend(student, teacher, beta)
    return Distributions(student, teacher, mu, beta, kl)


def blend(student: Tensor, teacher: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """log mu, [..., V], and KL(mu, pi_S), [...], of log pi_S and log pi_T, [..., V], and beta, [...]."""
    common = torch.isfinite(student)
    a, b = student.masked_fill(~common, 0.0), teacher.masked_fill(~common, 0.0)
    mu = (a + beta[..., None] * (b - a)).masked_fill(~common, -torch.inf).log_softmax(-1)
    return mu, (mu.exp() * (mu.masked_fill(~common, 0.0) - a)).sum(-1)
