"""Rollouts of an engine that loses drafts follow mu after repair, and what cannot be repaired raises."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch

from python_tests.vllm.chi_square import ChiSquare, assert_deviates, assert_follows, chi_square
from python_tests.vllm.fake_engine import ALIGNMENT, STOP, TOP_K, VOCABULARY, FakeEngine, law_after, teacher_top
from trbext.errors import EngineFailed, NonFiniteLogits
from trbext.runs.exit_codes import exit_code
from trbext.vllm.client import EngineDraw, EngineRollouts

PROMPT, EPSILON, LENGTH, ROLLOUTS, PAD = [4, 1], 0.1, 3, 6000, 5


def draw(engine: FakeEngine, rollouts: int = ROLLOUTS, *, top_k: int = 0, **changes: Any) -> EngineDraw:
    asked = {"epsilon": EPSILON, "max_new_tokens": LENGTH, **changes}
    prompts = asked.pop("prompts", [PROMPT] * rollouts)
    return EngineRollouts(engine, ALIGNMENT, pad_token_id=PAD, top_k=top_k).draw(prompts, **asked)


def completions(drawn: EngineDraw) -> list[list[int]]:
    rollout = drawn.rollout
    return [tokens[mask].tolist() for tokens, mask in zip(rollout.tokens, rollout.mask, strict=True)]


def against_the_law(tokens: list[list[int]], epsilon: float = EPSILON, last: int = PROMPT[-1]) -> ChiSquare:
    """Tests whole completions of at most three tokens, after a prompt's `last`, against their probabilities."""
    mu = law_after(epsilon).mu.exp()
    law: dict[tuple[int, ...], float] = {}
    for three in itertools.product(range(VOCABULARY), repeat=LENGTH):
        completion = three[: three.index(STOP) + 1] if STOP in three else three
        steps = zip((last, *completion), completion, strict=False)
        law[completion] = float(torch.stack([mu[before, token] for before, token in steps]).prod())
    assert abs(sum(law.values()) - 1) < 1e-9
    number = {completion: index for index, completion in enumerate(law)}
    return chi_square(torch.tensor([number[tuple(row)] for row in tokens]), torch.tensor(list(law.values())))


def test_rollouts_follow_mu_although_a_third_of_the_drafts_is_lost() -> None:
    drawn = draw(FakeEngine(lost=0.3))
    assert drawn.rounds > 2
    assert drawn.repaired > 1000
    assert_follows(against_the_law(completions(drawn)))


def test_the_labels_of_an_engine_follow_their_joint_law_with_the_tokens() -> None:
    drawn, again = (draw(FakeEngine(lost=0.3), seed=5) for _ in range(2))
    accepted = drawn.rollout.accepted
    assert accepted is not None
    assert torch.equal(accepted, again.rollout.accepted)
    law = law_after(EPSILON)
    mu, student = law.mu[PROMPT[-1]].exp(), law.student[PROMPT[-1]].exp()
    overlap = torch.minimum(mu, student)
    cells = torch.cat([mu - overlap, overlap])  # of a replacement, and of an accepted draft
    drawn_cells = drawn.rollout.tokens[:, 0] + VOCABULARY * accepted[:, 0]
    possible = cells > 1e-12
    assert possible[drawn_cells].all()
    number = possible.long().cumsum(0) - 1
    assert_follows(chi_square(number[drawn_cells], cells[possible]))
    assert_deviates(chi_square(number[drawn_cells], cells[possible].flip(0)))


def test_without_repair_they_would_not() -> None:
    drawn = draw(FakeEngine(lost=0.3, confesses=False))
    assert (drawn.rounds, drawn.repaired) == (1, 0)
    assert_deviates(against_the_law(completions(drawn)))


def test_an_engine_that_loses_nothing_is_asked_once() -> None:
    engine = FakeEngine()
    drawn = draw(engine, 50, seed=7)
    assert (drawn.rounds, drawn.repaired, drawn.preemptions) == (1, 0, None)
    assert len(engine.requests) == 50
    assert engine.seeds == [7]


def test_a_repair_continues_from_the_prefix_and_asks_for_the_rest() -> None:
    engine = FakeEngine(lost=0.3)
    drawn = draw(engine, 200, max_new_tokens=9)
    begun: dict[int, int] = {}
    for request in engine.requests:
        row = drawn.rollout.tokens[request.key].tolist()
        written = request.prompt[len(PROMPT) :]
        assert written == row[: len(written)]
        assert request.max_new_tokens == 9 - len(written)
        assert len(written) >= begun.get(request.key, 0)
        begun[request.key] = len(written)
    assert max(begun.values()) >= 7


def test_each_token_has_the_values_of_its_own_prefix_after_repair() -> None:
    drawn = draw(FakeEngine(lost=0.3), 400, top_k=TOP_K, max_new_tokens=8, epsilon=[0.1, 0.4] * 200)
    rollout, top = drawn.rollout, drawn.teacher_top
    assert top is not None
    for row, tokens in enumerate(completions(drawn)):
        epsilon = (0.1, 0.4)[row % 2]
        law = law_after(epsilon)
        last = torch.tensor([PROMPT[-1], *tokens[:-1]])
        for found, expected in (
            (rollout.log_prob, law.mu[last, tokens]),
            (rollout.student_log_prob, law.student[last, tokens]),
            (rollout.teacher_log_prob, law.teacher[last, tokens]),
            (rollout.beta, law.beta[last]),
            (rollout.kl, law.kl[last]),
        ):
            assert found is not None
            assert torch.equal(found[row, : len(tokens)], expected.float())
        for place, before in enumerate(last.tolist()):
            ids, log_prob, rest = teacher_top(epsilon, before)
            assert torch.equal(top.ids[row, place], ids.int())
            assert torch.equal(top.log_prob[row, place], log_prob.float())
            assert torch.equal(top.rest_log_prob[row, place], rest.float())


def test_rollouts_end_with_the_stop_token_or_at_their_length() -> None:
    drawn = draw(FakeEngine(lost=0.2), 300, max_new_tokens=6)
    for row, tokens in enumerate(completions(drawn)):
        assert STOP not in tokens[:-1]
        assert bool(drawn.rollout.finished[row]) == (tokens[-1] == STOP)
        assert tokens[-1] == STOP or len(tokens) == 6
        assert (drawn.rollout.tokens[row, len(tokens) :] == PAD).all()


def test_rollouts_of_a_prompt_that_ends_with_the_stop_token_follow_mu() -> None:
    drawn = draw(FakeEngine(lost=0.3), prompts=[[4, STOP]] * ROLLOUTS)
    assert_follows(against_the_law(completions(drawn), last=STOP))
    for row, tokens in enumerate(completions(drawn)):
        assert bool(drawn.rollout.finished[row]) == (tokens[-1] == STOP)


def test_a_fault_after_the_end_of_a_completion_is_none_of_its_rollout() -> None:
    for prompt in (PROMPT, [4, STOP]):
        sound = draw(FakeEngine(), 1, prompts=[prompt], max_new_tokens=30, seed=0)
        end = len(completions(sound)[0])
        assert end < 30
        spoilt = draw(FakeEngine(faulty_key=0, fault_index=end + 1), prompts=[prompt], max_new_tokens=30, seed=0)
        assert torch.equal(spoilt.rollout.tokens, sound.rollout.tokens)
        with pytest.raises(NonFiniteLogits, match="the first of prompt 0"):
            draw(FakeEngine(faulty_key=0, fault_index=end), prompts=[prompt], max_new_tokens=30, seed=0)


def test_a_fault_after_a_lost_draft_is_not_of_the_prefix_that_is_kept() -> None:
    engine = FakeEngine(lost=1.0, faulty_key=0, fault_index=2)
    with pytest.raises(EngineFailed, match="in 5 attempts: it is too small"):
        draw(engine, 1)


def test_records_of_an_interrupted_draw_are_dropped() -> None:
    engine = FakeEngine()
    rollouts = EngineRollouts(engine, ALIGNMENT, pad_token_id=PAD)
    rollouts.draw([PROMPT] * 20, epsilon=EPSILON, max_new_tokens=LENGTH)
    engine.generate(engine.requests)  # whose answer nobody took
    engine.lost = 1.0
    engine.generate(engine.requests)
    engine.lost = 0.0
    drawn = rollouts.draw([PROMPT] * 20, epsilon=EPSILON, max_new_tokens=LENGTH)
    assert drawn.repaired == 0


@pytest.mark.parametrize(
    ("engine", "asked", "message"),
    [
        (FakeEngine(lost=0.3), {"repair": False}, "from the teacher"),
        (FakeEngine(lost=1.0), {}, "in 5 attempts: it is too small"),
        (FakeEngine(faulty_key=11), {}, "at fault in 1 rollouts, the first of prompt 11"),
        (FakeEngine(holds_out=False), {}, r"begin with the token that was held out, 1, got \[0\]"),
        (FakeEngine(keeps_records=False), {}, "without their log-probabilities: another client may have taken its"),
        (FakeEngine(excess=0.01), {}, "must not exceed the budget of 0.1 nats, got 0.1"),
    ],
)
def test_what_cannot_be_repaired_is_one_line_of_a_command(
    engine: FakeEngine, asked: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(lambda: draw(engine, 40, **asked)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"epsilon": [0.1, 0.2]}, r"one number, or one per prompt \(1\), got 2"),
        ({"epsilon": -0.1}, "epsilon .* got -0.1"),
        ({"epsilon": float("nan")}, "epsilon .* got nan"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": 8.0}, r"max_new_tokens must be a whole number of at least 1, got 8\.0"),
        ({"temperature": 0.0}, "temperature .* got 0.0"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": [[4, 1.0]]}, r"prompts must be lists of token ids, got \[\[4, 1\.0\]\]"),
        ({"prompts": PROMPT}, r"prompts must be lists of token ids, got \[4, 1\]"),
        ({"seed": 1.5}, r"seed must be a whole number, got 1\.5"),
        ({"prompts": [[4]]}, "must have two tokens, .* got 1"),
        ({"prompts": [[4] * 52]}, "must be at least 65 for prompts of 52 and completions of 3 tokens .* got 64"),
    ],
)
def test_a_draw_that_cannot_be_right_is_refused_before_the_engine_is_asked(asked: dict[str, Any], message: str) -> None:
    engine = FakeEngine()
    with pytest.raises(ValueError, match=message):
        draw(engine, 1, **asked)
    assert engine.requests == []


def test_the_longest_rollout_is_drawn() -> None:
    engine = FakeEngine()
    draw(engine, prompts=[[4] * 51])
    assert len(engine.requests) == 1
