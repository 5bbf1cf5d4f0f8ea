"""The tokens of a vLLM engine follow mu, by chi-square against float64, and planted faults of the scheme are seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from python_tests.vllm.chi_square import along_rollouts, assert_deviates, assert_follows, first_three_tokens
from python_tests.vllm.engine.engines import Engines, client, drawn_tokens, each_step, raw_tokens, skip_without_vllm
from python_tests.vllm.model_pairs import PROMPT, ModelPair
from python_tests.vllm.token_law import TokenLaw
from trbext.vllm.local import LocalEngine

pytestmark = pytest.mark.vllm
skip_without_vllm()

BUDGETS = (0.0, 0.05, 0.2, float("inf"))
ROLLOUTS = 4000  # of each budget
SETTINGS = [  # draft length, and whether vLLM is made to schedule asynchronously
    pytest.param((3, True), id="k = 3, asynchronous"),
    pytest.param((3, False), id="k = 3", marks=pytest.mark.nightly),
    pytest.param((1, False), id="k = 1", marks=pytest.mark.nightly),
]


@pytest.fixture(scope="module", params=SETTINGS)
def engine(request: pytest.FixtureRequest, engines: Engines, pair: ModelPair) -> LocalEngine:
    """An engine of each setting in turn."""
    draft_length, asynchronous = request.param
    engine = engines.of(pair, draft_length, asynchronous=asynchronous)
    assert client(engine, pair).handshake["asynchronous"] is asynchronous
    return engine


def teacher_token(logits: torch.Tensor, row: Any) -> torch.Tensor:
    """Draws from the teacher after the logits' rows `row`, as int32."""
    return torch.multinomial(logits[torch.as_tensor(row)].softmax(-1), 1)[:, 0].int()


def bonus_token_of_the_teacher(runner: Any, logits: Any, metadata: Any, sample: Callable[[], Any]) -> Any:
    """After a block of accepted drafts the teacher draws one more token, as in ordinary speculation."""
    bonus = None if metadata is None else teacher_token(logits, metadata.bonus_logits_indices)
    output = sample()
    if metadata is not None:
        begin = 0
        for request, count in enumerate(metadata.num_draft_tokens):
            drafts = metadata.draft_token_ids[begin : begin + count]
            begin += count
            if count and torch.equal(output.sampled_token_ids[request, :count], drafts):
                output.sampled_token_ids[request, count] = bonus[request]
    return output


def first_token_of_the_teacher(runner: Any, logits: Any, metadata: Any, sample: Callable[[], Any]) -> Any:
    """The teacher draws the first token, as if no token of the prompt were held out."""
    batch = runner.input_batch
    counts = np.zeros(batch.num_reqs, int) if metadata is None else np.array(metadata.num_draft_tokens)
    first = batch.num_tokens_no_spec[: len(counts)] == batch.num_prompt_tokens[: len(counts)]
    drawn = teacher_token(logits, (np.cumsum(counts + 1) - counts - 1)[first])
    output = sample()
    output.sampled_token_ids[torch.from_numpy(first), 0] = drawn
    return output


def test_tokens_of_four_budgets_in_one_batch_follow_mu(engine: LocalEngine, pair: ModelPair, law: TokenLaw) -> None:
    tokens = drawn_tokens(client(engine, pair), len(BUDGETS) * ROLLOUTS, BUDGETS * ROLLOUTS)
    for number, epsilon in enumerate(BUDGETS):
        of_budget = tokens[number :: len(BUDGETS)]
        assert_follows(first_three_tokens(of_budget, law, PROMPT, epsilon))
        if epsilon == 0.05:
            assert_deviates(first_three_tokens(of_budget, law, PROMPT, 0.2))


def test_long_rollouts_of_unlike_prompts_follow_mu(engine: LocalEngine, pair: ModelPair, law: TokenLaw) -> None:
    rollouts = client(engine, pair)
    prompts = [[4 + row % 50] * (2 + row % 9) for row in range(300)]
    epsilon = [0.05, 0.2, 0.2] * 100
    rollout = rollouts.draw(prompts, epsilon=epsilon, max_new_tokens=25, seed=2).rollout
    tokens = [row[mask].tolist() for row, mask in zip(rollout.tokens, rollout.mask, strict=True)]
    assert sum(map(len, tokens)) > 3000
    assert_follows(along_rollouts(tokens, law, prompts, epsilon))


def test_a_bonus_token_of_the_teacher_is_seen(engine: LocalEngine, pair: ModelPair, law: TokenLaw) -> None:
    draft_length = client(engine, pair).handshake["draft_length"]
    prompts, epsilon = [PROMPT] * ROLLOUTS, [0.05] * ROLLOUTS
    with each_step(engine, bonus_token_of_the_teacher):
        tokens = raw_tokens(engine, pair, ROLLOUTS, 0.05, length=max(3, draft_length + 1))
    assert_deviates(along_rollouts(tokens, law, prompts, epsilon))
    if draft_length == 1:
        assert_deviates(first_three_tokens(tokens, law, PROMPT, 0.05))


def test_a_first_token_of_the_teacher_is_seen(engine: LocalEngine, pair: ModelPair, law: TokenLaw) -> None:
    client(engine, pair)
    # The engine reads the whole prompt. What it puts first is then a token of the completion.
    with each_step(engine, first_token_of_the_teacher):
        tokens = raw_tokens(engine, pair, ROLLOUTS, 0.05, prompt=[*PROMPT, 0], begin=0)
    assert_deviates(first_three_tokens(tokens, law, PROMPT, 0.05))
