"""Tests behavior policies in rollouts: the law of completions, when the teacher is called, faults by name."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from python_tests.rollout.policy_cases import (
    POLICIES,
    STEP,
    Law,
    draw,
    every_policy,
    geometric,
    grid,
    interleaved,
    logits,
    p_value,
    softmax,
)
from python_tests.rollout.rollout_cases import PAD, assert_same, left_padded, raising, tiny
from python_tests.rollout.test_policies import TopTokenOfTheTeacher
from trbext.rollout import DraftLength, Policy, Rollout, TrustRegion, draw_from, lockstep, speculative
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
from trbext.vocab import Alignment

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
    """Computes P(completion) of every completion of at most 3 tokens, in float64."""
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
    # The recorded log-probability is that of exactly this law, stop tokens included.
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


BUDGETS = torch.tensor([0.02, 0.4, 0.1, 0.3]).repeat(6)


class OfItsOwn(TrustRegion):
    def epsilon(self, step: int) -> Tensor:
        return BUDGETS * step / STEP


@pytest.mark.parametrize("draft_length", [0, 3])
@pytest.mark.parametrize(
    "policy",
    [
        TrustRegion(BUDGETS),
        TrustRegion(BUDGETS.double()),
        TrustRegion(BUDGETS.clone().requires_grad_()),
        TrustRegion(lambda step: BUDGETS.double() * step / STEP),
        OfItsOwn(0.1),
    ],
    ids=["float32", "float64", "with a gradient", "function", "subclass"],
)
def test_the_budgets_of_the_rows_are_those_of_an_epsilon_whatever_says_them(
    policy: TrustRegion, draft_length: int
) -> None:
    models, prompts = pair(), left_padded(*[[3, 4, 5], [1], [3, 5], [5, 5, 3]] * 6)

    def drawn(**given: Any) -> Rollout:
        options: Any = {"alignment": ALIGNMENT, "pad_token_id": PAD, "max_new_tokens": 40, "optimizer_step": STEP}
        return speculative(
            *models, *prompts, draft_length=draft_length, generator=torch.Generator().manual_seed(1), **options, **given
        )

    expected = drawn(epsilon=BUDGETS)
    assert len((expected.lengths // 5).unique()) > 2  # rows leave the batch, more than once
    assert_same(drawn(policy=policy), expected)


@pytest.mark.parametrize("epsilon", ["epsilon", "policy"])
def test_the_gradient_of_a_budget_ends_at_the_rollout(epsilon: str) -> None:
    class Begun(DraftLength):
        def begin(self, epsilon: float | Tensor) -> None:
            assert not torch.as_tensor(epsilon).requires_grad
            super().begin(epsilon)

    budgets = BUDGETS[:2].clone().requires_grad_()
    options: Any = {"alignment": ALIGNMENT, "pad_token_id": PAD, "max_new_tokens": 3, "draft_length": Begun()}
    given: Any = {"epsilon": budgets} if epsilon == "epsilon" else {"policy": TrustRegion(budgets)}
    assert not speculative(*pair(), *PROMPTS, **options, **given).log_prob.requires_grad


def test_a_policy_may_compute_in_float64_and_draw_a_token_of_int32() -> None:
    class Wide(Policy):
        def draw(self, step: int, student_logits: Tensor, teacher_logits: Any, uniforms: Tensor, temperature: float):
            log_mu = (student_logits.double() / temperature).log_softmax(-1)
            drawn = draw_from(log_mu, student_logits, teacher_logits, uniforms[0], temperature)
            again = draw_from(log_mu, student_logits, teacher_logits, uniforms[0], temperature, token=drawn.token.int())
            return again._replace(token=drawn.token.int())

    models = pair()
    found, expected = (roll(policy, models=models, max_new_tokens=12) for policy in (Wide(), STUDENT))
    assert found.tokens.dtype == torch.int64
    assert torch.equal(found.tokens, expected.tokens)


def test_policies_that_need_the_teacher_say_so_and_epsilon_excludes_a_policy() -> None:
    student, teacher = pair()
    with pytest.raises(ValueError, match="teacher must be a model for InterleavedTeacher, got None"):
        roll(InterleavedTeacher(2), models=(student, None))
    with pytest.raises(ValueError, match="give epsilon or policy, one of the two"):
        roll(STUDENT, models=(student, teacher), epsilon=0.1)
    with pytest.raises(ValueError, match="give epsilon or policy, one of the two"):
        speculative(
            *(student, teacher, *PROMPTS),
            epsilon=0.1,
            policy=TrustRegion(0.2),
            max_new_tokens=3,
            alignment=ALIGNMENT,
            pad_token_id=PAD,
        )
    with pytest.raises(ValueError, match="give epsilon or policy, one of the two"):
        lockstep(student, teacher, *PROMPTS, max_new_tokens=3, alignment=ALIGNMENT, pad_token_id=PAD)


@every_policy
def test_a_row_whose_logits_are_not_numbers_is_a_fault_by_name(name: str) -> None:
    policy = POLICIES[name][0]
    blamed = "teacher" if policy.needs_teacher(STEP) else "student"
    models = dict(zip(("student", "teacher"), pair(), strict=True))
    with torch.no_grad():
        models[blamed].lm_head.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match=rf"row 0, token 0: no token .* the logits of the {blamed} hold NaN"):
        roll(policy, models=tuple(models.values()))


@pytest.mark.parametrize("temperature", [-1.0, 0.0, math.nan, 1e-30])
@every_policy
def test_a_temperature_that_is_none_is_refused_for_every_policy(name: str, temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be between 1e-6 and 1e6, got {temperature}"):
        roll(POLICIES[name][0], temperature=temperature)


@pytest.mark.parametrize("decode", [lockstep, speculative])
@pytest.mark.parametrize("budget", [-0.1, torch.tensor([0.1, -0.1]), torch.tensor([0.1])])
def test_the_budget_of_a_policy_is_checked_as_an_epsilon_is(decode: Any, budget: Any) -> None:
    with pytest.raises(ValueError, match=r"epsilon must be a (KL budget|float or one budget per prompt)"):
        decode(
            *pair(),
            *PROMPTS,
            policy=TrustRegion(budget),
            max_new_tokens=3,
            alignment=ALIGNMENT,
            pad_token_id=PAD,
        )


def test_disjoint_supports_leave_a_fixed_beta_without_a_token() -> None:
    a, b = logits()
    a[:, :3], b[:, 3:] = -torch.inf, -torch.inf
    assert draw(FixedBeta(0.5), a, b, grid(1, 4), 1.0).token.tolist() == [-1] * 4


def test_a_policy_written_by_a_user_in_twenty_lines_draws_rollouts() -> None:
    models, count = pair(), 4000
    prompts = tuple(part[:1].repeat_interleave(count, 0) for part in PROMPTS)
    rollout = roll(TopTokenOfTheTeacher(0.5), prompts, models=models)

    def law(a: Tensor, b: Tensor, t: float) -> Tensor:
        return 0.5 * (b == b.amax(-1, keepdim=True)) + 0.5 * softmax(a, t)

    assert p_value(sequence_law(models, [3, 5], law), rollout, slice(count)) > 1e-4
