"""Completions that are asked for one at a time follow mu, with the values of each token, whatever the engine loses."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
import torch

from python_tests.vllm.chi_square import assert_deviates, assert_follows
from python_tests.vllm.fake_engine import ALIGNMENT, STOP, TOP_K, FakeEngine, law_after, teacher_top
from python_tests.vllm.test_repair import EPSILON, LENGTH, PROMPT, against_the_law
from trbext.verl.rollouts import Drawn, ReplicaAnswer, ReplicaRollouts
from trbext.vllm.transport import EngineCompletion, Records, RolloutRequest

ROLLOUTS = 2500


def rollouts_of(engine: FakeEngine, *, top_k: int = 0, repair: bool = True) -> ReplicaRollouts:
    async def take_records() -> list[Records]:
        await asyncio.sleep(0)  # others go on meanwhile
        return engine.take_records()

    engine.enable(top_k=top_k)
    return ReplicaRollouts(ALIGNMENT, take_records, max_model_len=64, draft_length=3, top_k=top_k, repair=repair)


def draw(engine: FakeEngine, number: int, *, top_k: int = 0, repair: bool = True, **changes: Any) -> list[Drawn]:
    """Draws so many completions at the same time."""
    asked = {"epsilon": EPSILON, "max_new_tokens": LENGTH, "temperature": 1.0, **changes}
    prompt = asked.pop("prompt", PROMPT)
    rollouts = rollouts_of(engine, top_k=top_k, repair=repair)

    async def ask(request: RolloutRequest, name: int) -> ReplicaAnswer:
        await asyncio.sleep(0)
        return ReplicaAnswer(engine.generate([dataclasses.replace(request, key=name)])[0])

    async def together() -> list[Drawn]:
        return await asyncio.gather(*(rollouts.draw(prompt, ask, **asked) for _ in range(number)))

    return asyncio.run(together())


def test_they_follow_mu_although_a_third_of_the_drafts_is_lost() -> None:
    drawn = draw(FakeEngine(lost=0.3), ROLLOUTS)
    assert sum(one.repaired for one in drawn) > 400
    assert_follows(against_the_law([one.tokens for one in drawn]))


def test_without_repair_they_would_not() -> None:
    assert_deviates(against_the_law([one.tokens for one in draw(FakeEngine(lost=0.3, confesses=False), ROLLOUTS)]))


def test_each_token_has_the_values_of_its_own_prefix() -> None:
    for one in draw(FakeEngine(lost=0.3), 200, top_k=TOP_K, max_new_tokens=8):
        law, tokens = law_after(EPSILON), one.tokens
        last = [PROMPT[-1], *tokens[:-1]]
        assert torch.equal(one.rollout.log_prob[0], law.mu[last, tokens].float())
        assert torch.equal(one.rollout.kl[0], law.kl[last].float())
        assert torch.equal(one.rollout.beta[0], law.beta[last].float())
        assert one.teacher_top is not None
        for place, before in enumerate(last):
            for found, said in zip(one.teacher_top, teacher_top(EPSILON, before), strict=True):
                assert torch.equal(found[0, place].double(), said.to(found.dtype).double())


def test_a_repair_asks_under_a_number_of_its_own() -> None:
    engine = FakeEngine(lost=0.5)
    drawn = draw(engine, 50)
    assert len({request.key for request in engine.requests}) == len(engine.requests) > len(drawn)


def test_a_completion_that_was_aborted_keeps_what_follows_mu() -> None:
    engine = FakeEngine()
    rollouts = rollouts_of(engine)

    async def ask(request: RolloutRequest, name: int) -> ReplicaAnswer:
        whole = engine.generate([dataclasses.replace(request, key=name)])[0]
        return ReplicaAnswer(EngineCompletion(whole.tokens[:kept], finished=False), aborted=True)

    for kept in (0, 1, 3):
        drawn = asyncio.run(rollouts.draw(PROMPT, ask, epsilon=EPSILON, max_new_tokens=9, temperature=1.0))
        assert drawn.aborted
        assert len(drawn.tokens) <= max(kept - 1, 0)
        assert STOP not in drawn.tokens[:-1]


@pytest.mark.parametrize(
    ("engine", "asked", "message"),
    [
        (FakeEngine(lost=0.6), {"repair": False}, "from the teacher"),
        (FakeEngine(lost=1.0), {}, "in 50 attempts: it is too small"),
        (FakeEngine(faulty_key=3), {}, "at fault in 1 rollouts"),
        (FakeEngine(holds_out=False), {}, r"begin with the token that was held out, 1, got \[0\]"),
        (FakeEngine(excess=0.01), {}, "must not exceed the budget of 0.1 nats, got 0.1"),
    ],
)
def test_what_cannot_be_repaired_raises(engine: FakeEngine, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        draw(engine, 20, **asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"epsilon": -0.1}, "epsilon .* got -0.1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": 8.0}, r"max_new_tokens must be a whole number of at least 1, got 8\.0"),
        ({"temperature": 0.0}, "temperature .* got 0.0"),
        ({"prompt": [4]}, "must have two tokens, .* got 1"),
        ({"prompt": [4] * 52}, r"at most 54 tokens, .* got 52 \+ 3: raise rollout.max_model_len"),
    ],
)
def test_a_draw_that_cannot_be_right_is_refused_before_the_engine_is_asked(asked: dict[str, Any], message: str) -> None:
    engine = FakeEngine()
    with pytest.raises(ValueError, match=message):
        draw(engine, 1, **asked)
    assert engine.requests == []
