"""Where a vLLM engine loses the student's drafts: which rollouts are refused, which are repaired, and to what law."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from python_tests.vllm.chi_square import along_rollouts, assert_deviates, assert_follows, first_three_tokens
from python_tests.vllm.engine.engines import Engines, client, drawn_tokens, each_step, raw_tokens, skip_without_vllm
from python_tests.vllm.model_pairs import PROMPT, ModelPair
from python_tests.vllm.token_law import TokenLaw
from trbext.vllm.engine import token_budget

pytestmark = pytest.mark.vllm
skip_without_vllm()

DRAFT_LENGTH, EPSILON, ROLLOUTS = 3, 0.2, 4000
synchronous_or_not = pytest.mark.parametrize("asynchronous", [False, pytest.param(True, marks=pytest.mark.nightly)])
# Few blocks of KV cache, for 64 rollouts of 65 tokens at a time.
SCARCE = {"max_num_seqs": 64, "num_gpu_blocks_override": 40, "block_size": 32}
# A short context, and the least token budget that is allowed: prompts are read in chunks.
SMALL = {"max_num_seqs": 16, "max_model_len": 64, "max_num_batched_tokens": token_budget(16, DRAFT_LENGTH)}


def lose_drafts(share: float) -> Callable[[Any, Any, Any, Callable[[], Any]], Any]:
    """Makes each request of a step lose its drafts with probability `share`."""
    generator = random.Random(0)

    def change(runner: Any, logits: Any, metadata: Any, sample: Callable[[], Any]) -> Any:
        owners = runner._draft_prob_req_ids
        if owners is not None:
            runner._draft_prob_req_ids = [one if generator.random() > share else "lost" for one in owners]
        output = sample()
        runner._draft_prob_req_ids = owners
        return output

    return change


@synchronous_or_not
def test_rollouts_that_lose_their_drafts_at_random_are_repaired_to_the_law(
    asynchronous: bool, engines: Engines, pair: ModelPair, law: TokenLaw
) -> None:
    engine = engines.of(pair, DRAFT_LENGTH, asynchronous=asynchronous)
    rollouts = client(engine, pair)
    with each_step(engine, lose_drafts(0.3)):
        repaired = drawn_tokens(rollouts, ROLLOUTS, EPSILON)
        as_they_come = raw_tokens(engine, pair, ROLLOUTS, EPSILON)
        with pytest.raises(RuntimeError, match="from the teacher, for want of the student's drafts"):
            drawn_tokens(rollouts, 100, EPSILON, repair=False)
        drawn = rollouts.draw([PROMPT] * 100, epsilon=EPSILON, max_new_tokens=9, seed=1)
    assert drawn.repaired > 30
    assert drawn.rounds > 2
    assert_follows(first_three_tokens(repaired, law, PROMPT, EPSILON))
    assert_deviates(first_three_tokens(as_they_come, law, PROMPT, EPSILON))


@synchronous_or_not
def test_preempted_rollouts_are_repaired_to_the_law(
    asynchronous: bool, engines: Engines, pair: ModelPair, law: TokenLaw
) -> None:
    rollouts = client(engines.of(pair, DRAFT_LENGTH, asynchronous=asynchronous, **SCARCE), pair)
    drawn = rollouts.draw([PROMPT] * 96, epsilon=EPSILON, max_new_tokens=60, seed=1)
    assert drawn.preemptions is not None
    assert drawn.preemptions > 10
    assert 0 < drawn.repaired <= drawn.preemptions
    tokens = [row[mask].tolist() for row, mask in zip(drawn.rollout.tokens, drawn.rollout.mask, strict=True)]
    assert_follows(along_rollouts(tokens, law, [PROMPT] * 96, [EPSILON] * 96))


@synchronous_or_not
def test_rollouts_up_to_the_model_length_lose_nothing_and_longer_ones_are_refused(
    asynchronous: bool, engines: Engines, pair: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = client(engines.of(pair, DRAFT_LENGTH, asynchronous=asynchronous, **SMALL), pair)
    longest = rollouts.longest()
    assert longest == 64 - 10
    prompts = [[4 + row, 9, 3] if row % 2 else [4 + row] * (longest - 20) for row in range(16)]
    drawn = rollouts.draw(prompts, epsilon=EPSILON, max_new_tokens=20, seed=1)
    assert drawn.rollout.lengths[::2].max() == 20  # one at least was not ended by its stop token
    assert drawn.repaired == 0
    with pytest.raises(ValueError, match=r"max_model_len of both models must be at least 65 .* got 64"):
        rollouts.draw(prompts, epsilon=EPSILON, max_new_tokens=21)
    # Without that check a long rollout would cost the drafts of the short ones too.
    monkeypatch.setattr(rollouts, "longest", lambda: 64)
    with pytest.raises(RuntimeError, match="from the teacher"):
        rollouts.draw(prompts, epsilon=EPSILON, max_new_tokens=30, seed=1, repair=False)


@synchronous_or_not
def test_prompts_that_are_read_in_chunks_lose_nothing(
    asynchronous: bool, engines: Engines, pair: ModelPair, law: TokenLaw
) -> None:
    rollouts = client(engines.of(pair, DRAFT_LENGTH, asynchronous=asynchronous, **SMALL), pair)
    prompts = [[4 + place % 37 for place in range(row, row + 3 + 11 * row % 37)] for row in range(120)]
    drawn = rollouts.draw(prompts, epsilon=EPSILON, max_new_tokens=15, seed=1)
    assert drawn.repaired == 0
    tokens = [row[mask].tolist() for row, mask in zip(drawn.rollout.tokens, drawn.rollout.mask, strict=True)]
    assert_follows(along_rollouts(tokens, law, prompts, [EPSILON] * 120))
