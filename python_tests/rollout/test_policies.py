"""Tests behavior policies: their exact laws, what they report, their schedules, and one that a user wrote."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.rollout.policy_cases import POLICIES, STEP, draw, every_policy, grid, logits, softmax
from trbext.results import Sample
from trbext.rollout import Policy, TrustRegion, draw_from
from trbext.rollout.policies import (
    STUDENT,
    ArithmeticMixture,
    FixedBeta,
    InterleavedTeacher,
    LambdaCoin,
    StudentTemperature,
    Teacher,
)
from trbext.training.fields.policy import ROLLOUT_POLICIES, PolicyFields
from trbext.training.schedule import Schedule

# ---- Laws ----


@pytest.mark.parametrize("temperature", [1.0, 0.8])
@every_policy
def test_enumerating_the_uniforms_gives_the_law_and_its_log_probs(name: str, temperature: float) -> None:
    policy, law, _ = POLICIES[name]
    points = 4000 if policy.uniforms_per_token == 1 else 200
    for seed in range(5):
        a, b = logits(seed=seed)
        expected = law(a.double(), b.double(), temperature)[0]
        found = draw(policy, a, b, grid(policy.uniforms_per_token, points), temperature)
        share = torch.bincount(found.token, minlength=6) / len(found.token)
        # Each token's cells are intervals, whose ends a grid of centers misses by half a cell.
        assert (share - expected).abs().max() <= (2 if points == 4000 else 8) / points, seed
        torch.testing.assert_close(found.log_prob.double(), expected.log()[found.token], atol=2e-4, rtol=0)


@every_policy
def test_a_draw_reports_both_models_at_the_runs_temperature_and_the_kl_it_spent(name: str) -> None:
    policy, law, beta = POLICIES[name]
    a, b = logits(seed=7)
    found = draw(policy, a, b, grid(policy.uniforms_per_token, 50), 0.8)
    p, mu = softmax(a, 0.8)[0], law(a.double(), b.double(), 0.8)[0]
    torch.testing.assert_close(found.student_log_prob.double(), p.log()[found.token], atol=1e-6, rtol=0)
    if policy.needs_teacher(STEP):
        expected = softmax(b, 0.8)[0].log()[found.token]
        torch.testing.assert_close(found.teacher_log_prob.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        found.kl.double(), (mu * (mu / p).log()).sum().expand(len(found.kl)), atol=3e-5, rtol=1e-4
    )
    if beta is not None:
        assert (found.beta == beta).all()
    elif name != "trust region":
        assert found.beta.isnan().all()


def test_the_coin_per_sequence_gives_whole_rows_to_one_model() -> None:
    policy = LambdaCoin(0.3, "sequence")
    assert (policy.uniforms_per_token, policy.uniforms_per_row) == (1, 1)
    a, b = logits()
    found = draw(policy, a, b, grid(2, 100), 1.0)
    of_student = grid(2, 100)[1] < 0.3
    assert torch.equal(found.beta == 0, of_student)
    for rows, chosen in ((of_student, a), (~of_student, b)):
        share = torch.bincount(found.token[rows], minlength=6) / rows.sum()
        assert (share - softmax(chosen, 1.0)[0]).abs().max() < 0.02
        torch.testing.assert_close(
            found.log_prob[rows], chosen[0].log_softmax(-1)[found.token[rows]], atol=1e-6, rtol=0
        )


@every_policy
def test_half_precision_and_large_vocabularies_keep_the_law(name: str) -> None:
    policy, law, _ = POLICIES[name]
    a, b = (x.bfloat16() for x in logits(vocabulary=1003, seed=2))
    uniforms = torch.rand(
        policy.uniforms_per_token, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    found = draw(policy, a, b, uniforms, 1.0)
    expected = law(a.double(), b.double(), 1.0)[0].log()[found.token]
    torch.testing.assert_close(found.log_prob.double(), expected, atol=5e-4, rtol=0)


@every_policy
def test_masked_tokens_are_never_drawn_and_all_numbers_stay_finite(name: str) -> None:
    policy, law, _ = POLICIES[name]
    a, b = logits(vocabulary=8, seed=4)
    a[:, 3] = b[:, 3] = -torch.inf  # a merged EOS id
    found = draw(policy, a, b, grid(policy.uniforms_per_token, 100), 1.0)
    assert (found.token != 3).all()
    assert all(values.isfinite().all() for values in (found.log_prob, found.student_log_prob, found.kl))
    expected = law(a.double(), b.double(), 1.0)[0].log()[found.token]
    torch.testing.assert_close(found.log_prob.double(), expected, atol=2e-4, rtol=0)


def test_skd_never_accepts_a_token_that_the_teacher_excludes() -> None:
    a, b = logits(seed=3)
    b[:, [0, 2, 3, 5]] = -torch.inf  # two tokens left, K = 4
    found = draw(InterleavedTeacher(4), a, b, grid(2, 100), 1.0)
    assert set(found.token.tolist()) == {1, 4}
    p, q = softmax(a, 1.0)[0], softmax(b, 1.0)[0]
    expected = p[[1, 4]] + (1 - p[[1, 4]].sum()) * q[[1, 4]]
    torch.testing.assert_close(
        found.log_prob.double().exp(), torch.where(found.token == 1, *expected), atol=1e-5, rtol=0
    )


def test_skd_keeps_the_accepted_tokens_of_vanilla_opd() -> None:
    a, b = logits(seed=5)
    uniforms = grid(2, 40)
    plain, found = draw(STUDENT, a, b, uniforms[:1], 1.0), draw(InterleavedTeacher(3), a, b, uniforms, 1.0)
    stands = torch.isin(plain.token, b[0].topk(3).indices)
    assert 0 < stands.sum() < len(stands)
    assert torch.equal(found.token[stands], plain.token[stands])


@pytest.mark.parametrize(
    ("extreme", "limit"),
    [
        (FixedBeta(0.0), STUDENT),
        (ArithmeticMixture(0.0), STUDENT),
        (InterleavedTeacher(6), STUDENT),
        (StudentTemperature(1.0, 50), STUDENT),
        (LambdaCoin(1.0), STUDENT),
        (LambdaCoin(1.0, "sequence"), STUDENT),
        (FixedBeta(1.0), Teacher()),
        (ArithmeticMixture(1.0), Teacher()),
        (LambdaCoin(0.0), Teacher()),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_policies_have_the_student_and_the_teacher_as_limits(extreme: Policy, limit: Policy) -> None:
    a, b = logits(seed=6)
    planes = extreme.uniforms_per_token + extreme.uniforms_per_row
    uniforms = torch.rand(planes, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, expected = draw(extreme, a, b, uniforms, 1.0), draw(limit, a, b, uniforms[:1], 1.0)
    assert torch.equal(found.token, expected.token)
    torch.testing.assert_close(found.log_prob, expected.log_prob, atol=2e-6, rtol=0)


# ---- Schedules ----


def test_the_temperature_rises_linearly_to_one_at_step_k() -> None:
    policy = StudentTemperature(0.8, 4)
    assert [policy.tau(step) for step in range(6)] == pytest.approx([0.8, 0.85, 0.9, 0.95, 1.0, 1.0])
    assert [policy.is_student(step) for step in range(6)] == [False] * 4 + [True] * 2
    assert not any(policy.needs_teacher(step) for step in range(6))
    assert StudentTemperature(0.8, 0).is_student(0)


def test_the_teacher_writes_the_first_k_steps_and_then_the_student() -> None:
    policy = Teacher(3)
    assert [policy.needs_teacher(step) for step in range(5)] == [True, True, True, False, False]
    assert [policy.is_student(step) for step in range(5)] == [False, False, False, True, True]
    assert Teacher().needs_teacher(10**6)
    assert Teacher(0).is_student(0)


def test_trust_region_budgets_follow_their_schedule() -> None:
    policy = TrustRegion(Schedule("linear", 0.4, 4))
    assert [policy.epsilon(step) for step in range(6)] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0, 0.0])
    assert [policy.is_student(step) for step in range(6)] == [False] * 4 + [True] * 2


def test_the_coin_per_batch_is_a_function_of_seed_and_step_with_the_right_share() -> None:
    def tosses(seed: int, share: float = 0.3) -> list[bool]:
        return [LambdaCoin(share, seed=seed).is_student(step) for step in range(1000)]

    assert tosses(0) == tosses(0) != tosses(1)
    assert abs(sum(tosses(0)) - 300) < 4 * math.sqrt(1000 * 0.3 * 0.7)
    assert all(toss <= more for toss, more in zip(tosses(0, 0.3), tosses(0, 0.6), strict=True))
    assert [LambdaCoin(0.3).needs_teacher(step) for step in range(9)] == [not toss for toss in tosses(0)[:9]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FixedBeta(1.5), "beta must be a number with 0 <= beta <= 1, got 1.5"),
        (lambda: FixedBeta(math.nan), "beta must be .* got nan"),
        (lambda: ArithmeticMixture(-0.1), "alpha must be a number with 0 <= alpha <= 1, got -0.1"),
        (lambda: InterleavedTeacher(0), "top_k must be at least 1 token, got 0"),
        (lambda: InterleavedTeacher(2.5), r"top_k must be a whole number, got 2\.5"),  # type: ignore[arg-type]
        (lambda: InterleavedTeacher(5, 0.0), "teacher_temperature must be .* 1e-06 <= teacher_temperature <= 1e"),
        (lambda: InterleavedTeacher(5, 1e-39), "teacher_temperature must be .* got 1e-39"),
        (lambda: StudentTemperature(0.0, 5), r"start must be a number with 1e-06 <= start <= 1e\+06, got 0.0"),
        (lambda: LambdaCoin(2.0), "student_share must be .* got 2.0"),
        (lambda: FixedBeta("0.5"), "beta must be a number with 0 <= beta <= 1, got '0.5'"),  # type: ignore[arg-type]
        (lambda: ArithmeticMixture(None), "alpha must be a number .* got None"),  # type: ignore[arg-type]
        (lambda: LambdaCoin("1"), "student_share must be a number .* got '1'"),  # type: ignore[arg-type]
        (lambda: StudentTemperature("1", 5), "start must be a number .* got '1'"),  # type: ignore[arg-type]
        (lambda: StudentTemperature(0.5, "5"), "steps must be a whole number, got '5'"),  # type: ignore[arg-type]
        (lambda: StudentTemperature(0.5, -3), "steps must be at least 0, got -3"),
        (lambda: InterleavedTeacher(4, "1"), "teacher_temperature must be .* got '1'"),  # type: ignore[arg-type]
        (lambda: InterleavedTeacher(True), "top_k must be a whole number, got True"),
        (lambda: Teacher("3"), "steps must be a whole number, got '3'"),  # type: ignore[arg-type]
        (lambda: Teacher(-1), "steps must be at least 0, got -1"),
        (lambda: LambdaCoin(0.5, "token"), "per must be one of batch, sequence, got 'token'"),
    ],
)
def test_refuses_out_of_range(make: Callable[[], Policy], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# ---- A policy of one's own ----


class TopTokenOfTheTeacher(Policy):
    """Draws the teacher's most probable token with probability `share`, and otherwise from the student."""

    def __init__(self, share: float) -> None:
        self.share = share

    def draw(
        self, step: int, student_logits: Tensor, teacher_logits: Tensor | None, uniforms: Tensor, temperature: float
    ) -> Sample:
        assert teacher_logits is not None
        best = torch.zeros_like(student_logits).scatter(-1, teacher_logits.argmax(-1, keepdim=True), 1.0)
        mu = self.share * best + (1 - self.share) * (student_logits / temperature).softmax(-1)
        return draw_from(mu.log(), student_logits, teacher_logits, uniforms[0], temperature)

    def is_student(self, step: int) -> bool:
        return self.share == 0


def test_the_policy_of_the_docs_is_twenty_lines_and_draws_as_the_one_here() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "policies.md").read_text()
    (code,) = re.findall(r"```py\n(.*?)```", page, re.S)
    assert len(code.splitlines()) <= 20
    scope: dict[str, Any] = {"torch": torch, "Policy": Policy, "draw_from": draw_from}
    exec(code, scope)
    a, b = logits()
    found = draw(scope["TopTokenOfTheTeacher"](0.5), a, b, grid(1, 50), 0.8)
    for mine, theirs in zip(draw(TopTokenOfTheTeacher(0.5), a, b, grid(1, 50), 0.8), found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def test_the_docs_name_every_policy_and_its_fields() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "policies.md").read_text()
    for name in ROLLOUT_POLICIES:
        assert f"| `{name}` |" in page
    for field in dataclasses.fields(PolicyFields):
        assert field.name in page or field.name.split("_")[0] + "_*" in page, field.name
