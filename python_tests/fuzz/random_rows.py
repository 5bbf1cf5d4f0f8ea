"""Makes batches of random logit rows, from ordinary ones to those that no model would make."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 300_000
# The sizes at which something changes: vectors, blocks of 1024, segments of 4096; and the widths of real models.
EDGES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 255, 511, 1000, 1023, 1024, 1025,
         2047, 4095, 4096, 4097, 5000, 8193, 16384, 32769, 50257, 151_936, 262_144)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """N rows of V logits for one call; `family` tells how each was made."""

    number: int
    student: Tensor  # [N, V]
    teacher: Tensor
    epsilon: Tensor  # float32 [N]
    temperature: float  # a float32 number: verify takes no other
    uniform: Tensor  # float64 [N]
    family: list[str]

    def __len__(self) -> int:
        return len(self.epsilon)

    @property
    def vocab(self) -> int:
        return self.student.shape[1]


def batch_of(seed: int, number: int, widest: int, elements: int) -> Batch:
    """Returns the batch of that number, a pure function of the arguments, with about `elements` logits of either
    model."""
    rng = np.random.default_rng([seed, number])
    edges = [size for size in EDGES if size <= widest]
    vocab = int(rng.choice(edges)) if rng.random() < 0.3 else round(math.exp(rng.uniform(0, math.log(widest))))
    rows = int(np.clip(elements // vocab, 2, 2000))
    student, teacher, family = _logits(rng, rows, vocab)
    _put_faults(rng, student)
    _put_faults(rng, teacher)
    dtypes = [DTYPES[i] for i in rng.integers(0, 3, 2)]
    if rng.random() < 0.4:
        dtypes[1] = dtypes[0]
    return Batch(
        number,
        _as(student, dtypes[0]),
        _as(teacher, dtypes[1]),
        _epsilons(rng, rows),
        1.0 if rng.random() < 0.5 else float(np.float32(math.exp(rng.uniform(math.log(0.1), math.log(5))))),
        _uniforms(rng, rows),
        family,
    )


def _as(logits: Array, dtype: torch.dtype) -> Tensor:
    """Casts to the dtype; finite logits stay finite in float16."""
    largest = torch.finfo(dtype).max
    tensor = torch.from_numpy(logits)
    return torch.where(tensor.isfinite(), tensor.clamp(-largest, largest), tensor).to(dtype)


def _spread(rng: np.random.Generator, rows: int, low: float, high: float) -> Array:
    return 10.0 ** rng.uniform(low, high, (rows, 1))


def _scale(rng: np.random.Generator, rows: int) -> Array:
    """Returns scales: half of the rows as models have them, half from 1e-3 to 1e4."""
    ordinary = rng.random((rows, 1)) < 0.5
    return np.where(ordinary, _spread(rng, rows, -1.5, 1), _spread(rng, rows, -3, 4))


def _one_token(rng: np.random.Generator, logits: Array, height: Array) -> Array:
    logits[np.arange(len(logits)), rng.integers(0, logits.shape[1], len(logits))] += height[:, 0]
    return logits


def _mask(rng: np.random.Generator, logits: Array, value: float) -> Array:
    """Returns a mask over a part of the row, which ranges from nothing to everything."""
    part = rng.random((len(logits), 1)) ** 2
    return np.where(rng.random(logits.shape) < part, value, logits)


Pair = tuple[Array, Array]
# From a generator, two arrays [N, V] of normal numbers, and two scales [N, 1].
Family = Callable[[np.random.Generator, Array, Array, Array, Array], Pair]


def _heavy_tails(rng: np.random.Generator, x: Array, y: Array, a: Array, b: Array) -> Pair:
    return a * x, a * x + b * rng.standard_t(1.0, x.shape).clip(-1e6, 1e6)


def _peaks(rng: np.random.Generator, x: Array, y: Array, a: Array, b: Array) -> Pair:
    first, second = (_spread(rng, len(x), 0, 3) for _ in "ab")
    return _one_token(rng, 0.1 * a * x, first), _one_token(rng, 0.1 * b * y, second)


def _outliers(rng: np.random.Generator, x: Array, y: Array, a: Array, b: Array) -> Pair:
    student, teacher = 2 * x, 2 * x + 0.5 * y
    token = rng.integers(0, x.shape[1], len(x))
    student[np.arange(len(x)), token] -= _spread(rng, len(x), 0, 3)[:, 0]
    teacher[np.arange(len(x)), token] += _spread(rng, len(x), 0, 2.5)[:, 0]
    return student, teacher


def _nearly_disjoint(rng: np.random.Generator, x: Array, y: Array, a: Array, b: Array) -> Pair:
    of_student, gap = rng.random(x.shape) < 0.5, _spread(rng, len(x), 0, 4)
    return np.where(of_student, x, x - gap), np.where(of_student, y - gap, y)


def _nearly_identical(rng: np.random.Generator, x: Array, y: Array, a: Array, b: Array) -> Pair:
    return a * x, a * x * (1 + 1e-7 * y) + _spread(rng, len(x), -8, -2) * y


def _huge_masks(rng: np.random.Generator, x: Array, y: Array, a: Array, b: Array) -> Pair:
    """Masks tokens of either model by a finite number, up to the lowest of float32. The models' numbers differ: equal
    ones balance at beta = 1/2, where the rounding of their difference decides between that beta and the one below."""
    mask = -rng.choice([1e9, 1e13, 1e18, 1e30, float(np.finfo(np.float32).max)], (len(x), 1))
    masked = [rng.random(x.shape) < rng.random((len(x), 1)) for _ in "xy"]
    student, teacher = a.clip(0, 20) * x, a.clip(0, 20) * x + b.clip(0, 20) * y
    return np.where(masked[0], mask, student), np.where(masked[1], 0.75 * mask, teacher)


def _constants(rng: np.random.Generator, x: Array, y: Array, a: Array, b: Array) -> Pair:
    return a + 0 * x, np.where(rng.random((len(x), 1)) < 0.5, b + 0 * y, b * y)


def _offsets(rng: np.random.Generator, x: Array, y: Array, a: Array, b: Array) -> Pair:
    first, second = (rng.choice([-1, 1], (len(x), 1)) * _spread(rng, len(x), 2, 5) for _ in "ab")
    return a * x + first, b * y + second


def _subnormals(rng: np.random.Generator, x: Array, y: Array, a: Array, b: Array) -> Pair:
    return x * _spread(rng, len(x), -45, -30), y * _spread(rng, len(x), -45, -30)


FAMILIES: dict[str, Family] = {
    "unrelated": lambda rng, x, y, a, b: (a * x, b * y),
    "related": lambda rng, x, y, a, b: (a * x, a * x + b * y),
    "as models have them": lambda rng, x, y, a, b: (3 * x, 3 * x + a.clip(0.01, 3) * y),
    "heavy tails": _heavy_tails,
    "peaks": _peaks,
    "ties": lambda rng, x, y, a, b: (a * np.round(x), b * np.round(y)),
    "constants": _constants,
    "the same, or an offset": lambda rng, x, y, a, b: (a * x, a * x + np.where(rng.random(a.shape) < 0.5, b, 0)),
    "nearly identical": _nearly_identical,
    "nearly disjoint": _nearly_disjoint,
    "subnormals": _subnormals,
    "offsets": _offsets,
    "finite masks": lambda rng, x, y, a, b: (
        _mask(rng, a.clip(0, 20) * x, -65504.0),
        _mask(rng, a.clip(0, 20) * x + b.clip(0, 20) * y, -65504.0),
    ),
    "huge masks": _huge_masks,
    "masked student": lambda rng, x, y, a, b: (_mask(rng, a.clip(0, 50) * x, -np.inf), a.clip(0, 50) * x + b * y),
    "masked teacher": lambda rng, x, y, a, b: (a.clip(0, 50) * x, _mask(rng, a.clip(0, 50) * x + b * y, -np.inf)),
    "both masked": lambda rng, x, y, a, b: (
        _mask(rng, a.clip(0, 50) * x, -np.inf),
        _mask(rng, a.clip(0, 50) * x + b.clip(0, 50) * y, -np.inf),
    ),
    "outliers": _outliers,
}


def _logits(rng: np.random.Generator, rows: int, vocab: int) -> tuple[Array, Array, list[str]]:
    names = list(FAMILIES)
    chosen = rng.integers(0, len(names), rows)
    student, teacher = np.empty((rows, vocab)), np.empty((rows, vocab))
    for i in np.unique(chosen):
        here = np.flatnonzero(chosen == i)
        x, y = (rng.standard_normal((len(here), vocab)) for _ in "xy")
        student[here], teacher[here] = FAMILIES[names[i]](rng, x, y, _scale(rng, len(here)), _scale(rng, len(here)))
    return student, teacher, [names[i] for i in chosen]


def _put_faults(rng: np.random.Generator, logits: Array) -> None:
    """Puts faults into two rows of a hundred: a NaN, a +inf, or nothing but -inf."""
    kind = rng.random(len(logits))
    single = np.flatnonzero(kind < 0.01)
    logits[single, rng.integers(0, logits.shape[1], len(single))] = rng.choice([np.nan, np.inf], len(single))
    logits[kind > 0.99] = -np.inf


def _epsilons(rng: np.random.Generator, rows: int) -> Tensor:
    epsilon = 10 ** rng.uniform(math.log10(1e-9), math.log10(50), rows)
    special = rng.random(rows)
    for i, value in enumerate((0.0, np.inf, np.nan, -1.0)):
        epsilon[(special >= 0.007 * i) & (special < 0.007 * (i + 1))] = value
    return torch.from_numpy(epsilon).float()


def _uniforms(rng: np.random.Generator, rows: int) -> Tensor:
    uniform, special = rng.random(rows), rng.random(rows)
    for i, value in enumerate((0.0, 1 - 2.0**-53, 2.0**-54, 1.0, np.nan, -1e-300)):
        uniform[(special >= 0.01 * i) & (special < 0.01 * (i + 1))] = value
    return torch.from_numpy(uniform)
