"""Makes pairs of logit rows that stress the solver in different ways, one name each.

They are float32 unless the name says otherwise.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

EPSILONS = (1e-6, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, float("inf"))


def families(vocab: int, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns name -> (student_logits [V], teacher_logits [V])."""
    rng = np.random.default_rng([vocab, seed])

    def language_model() -> np.ndarray:  # a bulk, and a head of likely tokens far above it
        logits = rng.normal(0, 2.2, vocab)
        head = min(200, max(1, vocab // 5))
        chosen = rng.choice(vocab, head, replace=False)
        logits[chosen] = 22 - 1.3 * np.arange(head) ** 0.6 + rng.normal(0, 0.7, head)
        return logits

    def peaked(probability: float, token: int) -> np.ndarray:
        logits = rng.normal(0, 2, vocab)
        others = np.logaddexp.reduce(np.delete(logits, token))
        logits[token] = others + np.log(probability / (1 - probability))
        return logits

    def noise(scale: float) -> np.ndarray:
        return rng.normal(0, scale, vocab)

    rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    zipf = -1.1 * np.log(rng.permutation(np.arange(1, vocab + 1))) + noise(0.5)
    rows["zipf, close"] = (zipf, zipf + noise(0.5))
    rows["zipf, far"] = (zipf, zipf + noise(3))
    flat = noise(0.1)
    rows["flat"] = (flat, flat + noise(0.5))
    lm = language_model()
    rows["language model, close"] = (lm, lm + noise(1) * np.where(lm > 8, 1, 0.5))
    rows["language model, far"] = (lm, lm + noise(3))
    first, second = 0, vocab - 1
    rows["peaked, agreeing"] = (peaked(0.99, first), peaked(0.97, first))
    rows["peaked, disagreeing"] = (peaked(0.99, first), peaked(0.99, second))
    rows["very peaked, disagreeing"] = (peaked(1 - 1e-6, first), peaked(1 - 1e-6, second))
    rows["peaked student, flat teacher"] = (peaked(0.999, first), noise(1.5))
    rows["flat student, peaked teacher"] = (noise(1.5), peaked(0.999, second))
    rows["peaked, noisy"] = (peaked(0.99, first), peaked(0.99, first) + noise(1))
    rows["zipf"] = (zipf, zipf + noise(1))
    rows["language model, closer"] = (lm, lm + noise(0.5) * np.where(lm > 8, 1, 0.5))
    rows["heavier tailed"] = (lm, lm + np.clip(0.5 * rng.standard_cauchy(vocab), -60, 60))
    rows["heavy tailed"] = (lm, lm + 0.5 * rng.standard_t(2, vocab))
    half = np.arange(vocab) % 2 == 0
    bulk = noise(2)
    rows["disjoint by 100 nats"] = (np.where(half, bulk, bulk - 100), np.where(half, bulk - 100, bulk) + noise(0.5))
    rows["disjoint by 40 nats"] = (np.where(half, bulk, bulk - 40), np.where(half, bulk - 40, bulk) + noise(0.5))
    rows["near-identical, 1e-3"] = (lm, lm + noise(1e-3))
    rows["near-identical, 1e-5"] = (flat, flat + noise(1e-5))
    rows["identical"] = (lm, lm)
    rows["constant offset"] = (flat, flat + 1000.0)
    for depth in (15, 30, 60):  # a token that the student all but excludes and the teacher is sure of
        student, outlier = lm.copy(), lm + noise(0.5)
        student[second], outlier[second] = lm.max() - depth, lm.max() + 12
        rows[f"teacher's outlier, {depth} nats"] = (student, outlier)
    if vocab >= 17:
        student, outlier = lm.copy(), lm + noise(0.5)
        student[-3:], outlier[-3:] = lm.max() - np.array([20, 40, 80]), lm.max() + np.array([3, 10, 20])
        rows["teacher's three outliers"] = (student, outlier)
    if vocab >= 17:
        masked = rng.random(vocab) < 0.5
        masked[first] = False
        rows["both masked"] = (np.where(masked, -np.inf, lm), np.where(masked, -np.inf, lm + noise(1)))
        teacher = lm + noise(1)
        keep = max(2, vocab // 20)
        rows["teacher's top tokens only"] = (lm, np.where(teacher >= np.sort(teacher)[-keep], teacher, -np.inf))
        rows["student's top tokens only"] = (np.where(lm >= np.sort(lm)[-keep], lm, -np.inf), lm + noise(1))
    tensors = {name: (torch.tensor(s).float(), torch.tensor(t).float()) for name, (s, t) in rows.items()}
    for name in ("zipf, close", "language model, close"):
        tensors[f"{name}, bfloat16"] = tuple(row.bfloat16() for row in tensors[name])  # type: ignore[assignment]
    return tensors
