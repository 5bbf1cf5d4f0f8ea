"""Behavior policies: their exact laws, what they report, when they call the teacher, and one that a user wrote."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from python_tests.rollout.rollout_cases import PAD, assert_same, left_padded, raising, tiny
from python_tests.rollout.rollout_cases import p_value as p_value_of_many
from trbext import reference
from trbext.results import Sample
from trbext.rollout import Policy, Rollout, TrustRegion, draw_from, lockstep
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
from trbext.vocab import Alignment

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
    """[planes, points ** planes]: every combination of the centres of `points` equal cells of [0, 1)."""
    centres = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    return torch.stack(torch.meshgrid([centres] * planes, indexing="ij")).flatten(1)


def draw(policy: Policy, a: Tensor, b: Tensor, uniforms: Tensor, temperature: float, step: int = STEP) -> Sample:
    rows = uniforms.shape[1]
    teacher = b.expand(rows, -1) if policy.needs_teacher(step) else None
    return policy.draw(step, a.expand(rows, -1), teacher, uniforms, temperature)


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
        # Each token's cells are intervals, whose ends a grid of centres misses by half a cell.
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


def test_skd_never_lets_a_token_stand_that_the_teacher_excludes() -> None:
    a, b = logits(seed=3)
    b[:, [0, 2, 3, 5]] = -torch.inf  # two tokens left, K = 4
    found = draw(InterleavedTeacher(4), a, b, grid(2, 100), 1.0)
    assert set(found.token.tolist()) == {1, 4}
    p, q = softmax(a, 1.0)[0], softmax(b, 1.0)[0]
    expected = p[[1, 4]] + (1 - p[[1, 4]].sum()) * q[[1, 4]]
    torch.testing.assert_close(
        found.log_prob.double().exp(), torch.where(found.token == 1, *expected), atol=1e-5, rtol=0
    )


def test_skd_keeps_the_tokens_of_vanilla_opd_that_stand() -> None:
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


# ---- In rollouts ----

ALIGNMENT = Alignment(6, (2,), (4, 2))  # the teacher stops by 4 too
PROMPTS = left_padded([3, 5], [1, 3, 3, 5])


def pair() -> tuple[PreTrainedModel, PreTrainedModel]:
    student, teacher = (tiny(vocab=vocab, seed=seed, dtype=torch.float32) for vocab, seed in ((6, 1), (7, 3)))
    return student, teacher


def roll(policy: Policy, prompts: Any = PROMPTS, *, models: Any = None, seed: int = 0, **kwargs: Any) -> Rollout:
    defaults = {"optimizer_step": STEP, "max_new_tokens": 3, "alignment": ALIGNMENT, "pad_token_id": PAD}
    return lockstep(
        *(models or pair()),
        *prompts,
        policy=policy,
        generator=torch.Generator().manual_seed(seed),
        **{**defaults, **kwargs},
    )


def sequence_law(models: tuple[PreTrainedModel, PreTrainedModel], prompt: list[int], law: Law) -> dict[Any, float]:
    """P(completion) of every completion of at most 3 tokens, float64."""
    alive, ended = {(): 1.0}, {}
    for _ in range(3):
        prefixes = torch.tensor([[*prompt, *completion] for completion in alive])
        with torch.no_grad():
            a, b = (ALIGNMENT.canonical(model(prefixes).logits[:, -1].double()) for model in models)
        children = {
            (*completion, token): probability * float(mu[token])
            for (completion, probability), mu in zip(alive.items(), law(a, b, 1.0), strict=True)
            for token in range(ALIGNMENT.width)
        }
        ended.update({completion: p for completion, p in children.items() if completion[-1] == 2})
        alive = {completion: p for completion, p in children.items() if completion[-1] != 2 and p > 0}
    return ended | alive


@every_policy
def test_completions_follow_the_law_of_their_policy(name: str) -> None:
    policy, law, _ = POLICIES[name]
    models, count = pair(), 12_000
    prompts = tuple(part.repeat_interleave(count, 0) for part in PROMPTS)
    rollout = roll(policy, prompts, models=models)
    laws = [sequence_law(models, prompt, law) for prompt in ([3, 5], [1, 3, 3, 5])]
    assert all(math.isclose(sum(law.values()), 1, rel_tol=1e-9) for law in laws)
    halves = (slice(count), slice(count, None))
    assert min(p_value(law, rollout, rows) for law, rows in zip(laws, halves, strict=True)) > 1e-4
    # What is recorded is the log-probability of that very law, stop tokens included.
    for row in (0, 1, 2, count, count + 1):
        completion = tuple(rollout.tokens[row, : rollout.lengths[row]].tolist())
        expected = math.log(laws[row // count][completion])
        assert float(rollout.log_prob[row].sum()) == pytest.approx(expected, abs=1e-3)


def test_the_law_test_sees_a_wrong_replacement_and_a_wrong_temperature() -> None:
    models, count = pair(), 12_000
    prompts = tuple(part[:1].repeat_interleave(count, 0) for part in PROMPTS)
    for policy, law in (
        (InterleavedTeacher(2, 0.6), interleaved(2, 1.0)),
        (InterleavedTeacher(2, 0.6), interleaved(3, 0.6)),
        (StudentTemperature(0.6, 8), lambda a, b, t: softmax(a, 0.6 * t)),
        (ArithmeticMixture(0.2), geometric(0.2)),
    ):
        assert p_value(sequence_law(models, [3, 5], law), roll(policy, prompts, models=models), slice(count)) < 1e-6


def test_the_coin_per_sequence_holds_for_the_whole_rollout() -> None:
    prompts = tuple(part[:1].repeat_interleave(600, 0) for part in PROMPTS)
    rollout = roll(LambdaCoin(0.3, "sequence"), prompts, max_new_tokens=12)
    first = rollout.beta[:, 0]
    assert torch.equal(rollout.beta, torch.where(rollout.mask, first[:, None], 0.0))
    assert abs(int((first == 0).sum()) - 180) < 4 * math.sqrt(600 * 0.21)


def test_rollouts_with_several_uniforms_do_not_depend_on_when_rows_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = importlib.import_module("trbext.rollout.lockstep")
    prompts = left_padded([3, 4, 5], [1], [3, 5], [5, 5, 3])
    for policy in (InterleavedTeacher(2), LambdaCoin(0.5, "sequence")):
        with monkeypatch.context() as patches:
            patches.setattr(loop, "next_host_read", lambda generated: generated + 1000)
            together = roll(policy, prompts, max_new_tokens=30)
        assert together.lengths.min() < together.lengths.max()
        with monkeypatch.context() as patches:
            patches.setattr(loop, "next_host_read", lambda generated: generated + 1)
            leaving = roll(policy, prompts, max_new_tokens=30)
        for rollout in (together, leaving):
            rollout.beta.nan_to_num_(-1.0)
        assert_same(together, leaving, tolerance=1e-5)


@pytest.mark.parametrize(
    "policy",
    [StudentTemperature(0.6, 8), StudentTemperature(0.6, 1), Teacher(2), FixedBeta(0.0), LambdaCoin(1.0), STUDENT],
    ids=lambda policy: type(policy).__name__,
)
def test_the_teacher_is_not_called_when_it_is_not_needed(policy: Policy) -> None:
    student, teacher = pair()
    rollout = roll(policy, models=(student, raising(teacher)))
    assert rollout.teacher_log_prob is None
    assert torch.equal(rollout.tokens, roll(policy, models=(student, None)).tokens)
    if policy.is_student(STEP):
        plain = lockstep(
            student,
            None,
            *PROMPTS,
            epsilon=0.0,
            max_new_tokens=3,
            alignment=ALIGNMENT,
            pad_token_id=PAD,
            generator=torch.Generator().manual_seed(0),
        )
        assert torch.equal(rollout.tokens, plain.tokens)
        assert torch.equal(rollout.log_prob, plain.log_prob)


def test_a_budget_as_a_policy_is_the_budget_to_the_bit() -> None:
    student, teacher = pair()
    options: dict[str, Any] = {"max_new_tokens": 12, "alignment": ALIGNMENT, "pad_token_id": PAD}
    short = lockstep(student, teacher, *PROMPTS, epsilon=0.15, generator=torch.Generator().manual_seed(0), **options)
    assert_same(short, roll(TrustRegion(Schedule("linear", 0.3, 4)), max_new_tokens=12))


def test_policies_that_need_the_teacher_say_so_and_epsilon_excludes_a_policy() -> None:
    student, teacher = pair()
    with pytest.raises(ValueError, match="teacher must be a model for InterleavedTeacher, got None"):
        roll(InterleavedTeacher(2), models=(student, None))
    with pytest.raises(ValueError, match="give epsilon or policy, one of the two"):
        roll(STUDENT, models=(student, teacher), epsilon=0.1)
    with pytest.raises(ValueError, match="give epsilon or policy, one of the two"):
        lockstep(student, teacher, *PROMPTS, max_new_tokens=3, alignment=ALIGNMENT, pad_token_id=PAD)


@every_policy
def test_a_row_whose_logits_are_not_numbers_is_a_fault_by_name(name: str) -> None:
    policy = POLICIES[name][0]
    blamed = "teacher" if policy.needs_teacher(STEP) else "student"
    models = dict(zip(("student", "teacher"), pair(), strict=True))
    with torch.no_grad():
        models[blamed].lm_head.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match=rf"row 0, step 0: no token .* the logits of the {blamed} hold NaN"):
        roll(policy, models=tuple(models.values()))


def test_disjoint_supports_leave_a_fixed_beta_without_a_token() -> None:
    a, b = logits()
    a[:, :3], b[:, 3:] = -torch.inf, -torch.inf
    assert draw(FixedBeta(0.5), a, b, grid(1, 4), 1.0).token.tolist() == [-1] * 4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FixedBeta(1.5), "beta must be a number with 0 <= beta <= 1, got 1.5"),
        (lambda: FixedBeta(math.nan), "beta must be .* got nan"),
        (lambda: ArithmeticMixture(-0.1), "alpha must be a number with 0 <= alpha <= 1, got -0.1"),
        (lambda: InterleavedTeacher(0), "top_k must be at least 1 token, got 0"),
        (lambda: InterleavedTeacher(5, 0.0), "teacher_temperature must be .* 1e-06 <= teacher_temperature <= 1e"),
        (lambda: InterleavedTeacher(5, 1e-39), "teacher_temperature must be .* got 1e-39"),
        (lambda: StudentTemperature(0.0, 5), r"start must be a number with 1e-06 <= start <= 1e\+06, got 0.0"),
        (lambda: LambdaCoin(2.0), "student_share must be .* got 2.0"),
        (lambda: LambdaCoin(0.5, "token"), "per must be one of batch, sequence, got 'token'"),
    ],
)
def test_refuses_out_of_range(make: Callable[[], Policy], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# ---- A policy of one's own ----


class TopTokenOfTheTeacher(Policy):
    """The student, but with probability `share` the teacher's most probable token."""

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


def test_a_policy_written_by_a_user_in_twenty_lines_draws_rollouts() -> None:
    models, count = pair(), 4000
    prompts = tuple(part[:1].repeat_interleave(count, 0) for part in PROMPTS)
    rollout = roll(TopTokenOfTheTeacher(0.5), prompts, models=models)

    def law(a: Tensor, b: Tensor, t: float) -> Tensor:
        return 0.5 * (b == b.amax(-1, keepdim=True)) + 0.5 * softmax(a, t)

    assert p_value(sequence_law(models, [3, 5], law), rollout, slice(count)) > 1e-4


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
