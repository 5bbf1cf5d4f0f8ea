"""Checks solve, sample, blend and verify against random top-k teachers, by what they promise against the full teacher
that the k tokens imply."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from trbext import TopK, reference_top_k

from . import solved_rows, verified_rows
from .random_rows import Batch
from .solved_rows import Faults

MOST_ROWS = 100  # of a batch
LARGEST_K = 300


def check(batch: Batch, seed: int) -> Faults:
    """Checks the first rows of the batch, each with k tokens of its teacher."""
    rows = slice(min(len(batch), MOST_ROWS))
    top = _top_k(np.random.default_rng([seed, batch.number, 2]), batch, rows)
    student, heat = batch.student[rows], batch.temperature
    of_top_k = dataclasses.replace(
        batch,
        student=student,
        teacher=reference_top_k.implied_teacher(student, top, heat) * heat,
        epsilon=batch.epsilon[rows],
        uniform=batch.uniform[rows],
        family=batch.family[rows],
    )
    found = solved_rows.check(of_top_k, top) | verified_rows.check(of_top_k, seed, top)
    missing = len(batch) - rows.stop
    return {
        f"top-k: {name}": torch.cat([where, torch.zeros(missing, dtype=torch.bool)]) for name, where in found.items()
    }


def _top_k(rng: np.random.Generator, batch: Batch, rows: slice) -> TopK:
    """Returns k tokens of each row in random order: the most probable ones, or any; some places empty, some faults."""
    log_probs = (batch.teacher[rows].double() / batch.temperature).log_softmax(-1)
    count, vocab = log_probs.shape
    k = min(vocab, round(math.exp(rng.uniform(0, math.log(LARGEST_K)))))
    rank = torch.from_numpy(rng.standard_normal((count, vocab)))
    if rng.random() < 0.7:
        rank = log_probs.nan_to_num(0.0, 0.0, -1e300)
    ids = rank.topk(k).indices.gather(-1, torch.from_numpy(rng.random((count, k))).argsort(-1))
    values = log_probs.gather(-1, ids).float()
    values = values.nan_to_num(-1.0, 0.0, -torch.inf)  # faults of the dense teacher are none of the k tokens
    kind, place = torch.from_numpy(rng.random(count)), torch.from_numpy(rng.integers(0, k, count))
    ids[torch.from_numpy(rng.random((count, k))) < (0.1 if rng.random() < 0.3 else 0.0)] = -1
    faulty = torch.arange(count)
    for least, column, value in ((0.99, ids, -2), (0.98, ids, vocab), (0.97, values, torch.nan), (0.96, values, 0.1)):
        here = (kind >= least) & (kind < least + 0.01)
        column[faulty[here], place[here]] = value
    twice = (kind < 0.01) & (k > 1)
    ids[twice, 0] = ids[twice, -1]
    return TopK(ids.int() if rng.random() < 0.5 else ids, values)
