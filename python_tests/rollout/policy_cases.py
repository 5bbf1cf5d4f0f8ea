"""Makes behavior policies with their exact laws, and tiny distributions to draw from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from python_tests.rollout.rollout_cases import p_value as p_value_of_many
from trbext import reference
from trbext.results import Sample
from trbext.rollout import Policy, TrustRegion
from trbext.rollout.policies import (
    STUDENT,
    ArithmeticMixture,
    FixedBeta,
    InterleavedTeacher,
    LambdaCoin,
    StudentTemperature,
    Teacher,
)
from trbext.training.schedule import Schedule

p_value = partial(p_value_of_many, bins_above=10)  # the sharper policies write few different completions
Law = Callable[[Tensor, Tensor, float], Tensor]  # float64 logits [..., V] and temperature to mu [..., V]


def softmax(logits: Tensor, temperature: float) -> Tensor:
    return (logits.double() / temperature).softmax(-1)


def geometric(beta: float) -> Law:
    return lambda a, b, t: reference.behavior_log_probs(a, b, torch.full(a.shape[:-1], beta), t).exp()


def interleaved(top_k: int, tau: float) -> Law:
    def law(a: Tensor, b: Tensor, t: float) -> Tensor:
        p, inside = softmax(a, t), torch.zeros_like(a, dtype=torch.bool)
        inside.scatter_(-1, b.topk(top_k).indices, True)
        return p * inside + (p * ~inside).sum(-1, keepdim=True) * softmax(b, tau)

    return law


# At optimizer step 2: the policy, its law, and the beta it reports (None: none).
STEP = 2
POLICIES: dict[str, tuple[Policy, Law, float | None]] = {
    "student": (STUDENT, lambda a, b, t: softmax(a, t), 0.0),
    "trust region": (
        TrustRegion(Schedule("linear", 0.3, 4)),
        lambda a, b, t: reference.blend(a, b, 0.15, temperature=t).log_probs.exp(),
        None,
    ),
    "teacher": (Teacher(), lambda a, b, t: softmax(b, t), 1.0),
    "fixed beta": (FixedBeta(0.4), geometric(0.4), 0.4),
    "fixed beta 1": (FixedBeta(1.0), geometric(1.0), 1.0),
    "interleaved": (InterleavedTeacher(2, 0.6), interleaved(2, 0.6), None),
    "interleaved, one token": (InterleavedTeacher(1), interleaved(1, 1.0), None),
    "arithmetic": (ArithmeticMixture(0.2), lambda a, b, t: 0.2 * softmax(b, t) + 0.8 * softmax(a, t), None),
    "temperature": (StudentTemperature(0.6, 8), lambda a, b, t: softmax(a, 0.7 * t), None),
    "coin, batch": (LambdaCoin(0.5, "batch", seed=1), lambda a, b, t: softmax(b, t), 1.0),
}
every_policy = pytest.mark.parametrize("name", POLICIES)


def logits(vocabulary: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, 1, vocabulary, generator=generator)
    return student, teacher


def grid(planes: int, points: int) -> Tensor:
    """Returns [planes, points ** planes]: every combination of the centers of `points` equal cells of [0, 1)."""
    centers = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    return torch.stack(torch.meshgrid([centers] * planes, indexing="ij")).flatten(1)


def draw(policy: Policy, a: Tensor, b: Tensor, uniforms: Tensor, temperature: float, step: int = STEP) -> Sample:
    rows = uniforms.shape[1]
    teacher = b.expand(rows, -1) if policy.needs_teacher(step) else None
    return policy.draw(step, a.expand(rows, -1), teacher, uniforms, temperature)
