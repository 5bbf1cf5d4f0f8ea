"""What a vLLM engine reports of each token equals the float64 law after the token's own prefix."""

from __future__ import annotations

import pytest
import torch

from python_tests.vllm.chi_square import assert_deviates, assert_follows, first_three_tokens
from python_tests.vllm.engine.engines import Engines, client, drawn_tokens, skip_without_vllm
from python_tests.vllm.model_pairs import PROMPT, ModelPair
from python_tests.vllm.token_law import TokenLaw, blend

pytestmark = pytest.mark.vllm
skip_without_vllm()

TOLERANCE, TOP_K = 1e-4, 5
EPSILON = [0.0, 0.05, 0.2, float("inf")]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_values_of_each_token_are_those_of_the_law(
    temperature: float, engines: Engines, pair: ModelPair, law: TokenLaw
) -> None:
    prompts = [[4 + row, 9, 3, 7, 11] for row in range(48)]
    epsilon = EPSILON * 12
    drawn = client(engines.of(pair, 3), pair, top_k=TOP_K).draw(
        prompts, epsilon=epsilon, max_new_tokens=20, temperature=temperature, seed=3
    )
    rollout, top = drawn.rollout, drawn.teacher_top
    assert rollout.mask.sum() > 600
    expected = law.along(
        torch.cat([torch.tensor(prompts), rollout.tokens[:, :-1]], 1),
        len(PROMPT),
        epsilon=torch.tensor(epsilon),
        temperature=temperature,
    )

    def of_tokens(log_probs: torch.Tensor) -> torch.Tensor:
        return log_probs.gather(-1, rollout.tokens[..., None])[..., 0]

    def largest_error(found: torch.Tensor, exact: torch.Tensor) -> float:
        return float((found - exact).abs()[rollout.mask].max())

    assert rollout.teacher_log_prob is not None
    # The solver may end a little short of the largest beta, so log mu is that of the beta that it reports.
    reported_mu, reported_kl = blend(expected.student, expected.teacher, rollout.beta.double())
    assert largest_error(rollout.log_prob, of_tokens(reported_mu)) < TOLERANCE
    assert largest_error(rollout.kl, reported_kl) < TOLERANCE
    assert largest_error(rollout.student_log_prob, of_tokens(expected.student)) < TOLERANCE
    assert largest_error(rollout.teacher_log_prob, of_tokens(expected.teacher)) < TOLERANCE
    assert largest_error(rollout.beta, expected.beta) < TOLERANCE
    assert largest_error(rollout.kl, expected.kl) < TOLERANCE
    # The teacher at the student's most probable tokens, and the mass of all others.
    assert top is not None
    ids = top.ids.long()
    assert ids.shape == (*rollout.tokens.shape, TOP_K)
    assert largest_error(expected.student.gather(-1, ids), expected.student.topk(TOP_K).values) < TOLERANCE
    assert largest_error(top.log_prob, expected.teacher.gather(-1, ids)) < TOLERANCE
    rest = expected.teacher.scatter(-1, ids, -torch.inf).logsumexp(-1)
    assert largest_error(top.rest_log_prob, rest) < TOLERANCE


def test_the_counters_agree_with_the_rollouts(engines: Engines, pair: ModelPair) -> None:
    rollouts = client(engines.of(pair, 3), pair)
    of_student, of_teacher = (
        rollouts.draw([PROMPT] * 100, epsilon=epsilon, max_new_tokens=12, seed=4).rollout
        for epsilon in (0.0, float("inf"))
    )
    for rollout in (of_student, of_teacher):
        assert rollout.speculation is not None
        assert rollout.speculation.drafted >= rollout.mask.sum()  # tokens after the stop token count as well
    assert of_student.speculation is not None
    assert of_teacher.speculation is not None
    assert of_student.speculation.accepted == of_student.speculation.drafted  # epsilon = 0: mu is pi_S
    assert of_teacher.speculation.accepted < 0.6 * of_teacher.speculation.drafted


def test_a_seed_repeats_the_rollouts_and_leaves_the_random_numbers_of_the_caller(
    engines: Engines, pair: ModelPair
) -> None:
    rollouts = client(engines.of(pair, 3), pair)
    before = torch.get_rng_state()
    one, two, other = (drawn_tokens(rollouts, 100, 0.2, seed=seed, max_new_tokens=10) for seed in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())
    assert one == two
    assert one != other


def test_tokens_at_another_temperature_follow_mu(engines: Engines, pair: ModelPair, law: TokenLaw) -> None:
    rollouts = client(engines.of(pair, 3), pair)
    tokens = drawn_tokens(rollouts, 4000, 0.1, temperature=0.7)
    assert_follows(first_three_tokens(tokens, law, PROMPT, 0.1, 0.7))
    assert_deviates(first_three_tokens(tokens, law, PROMPT, 0.1, 1.0))
