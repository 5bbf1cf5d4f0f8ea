"""A mixture is the mean of its teachers' distributions that it says, at each token and for each row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from python_tests.models.tiny_models import tiny_llama
from python_tests.rollout.rollout_cases import PROMPTS, assert_same, completion_logits, raising, tiny
from trbext import lockstep, mixture, speculative
from trbext.models.rollback_model import cannot_roll_back
from trbext.vocab import Alignment, align

ALIGNMENT = Alignment(11, (2,), (2, 5))
DECODERS = {"lockstep": lockstep, "speculative": lambda *args, **kwargs: speculative(*args, draft_length=3, **kwargs)}
TEMPERATURE = 0.7


def decoded(name: str, teacher: Any, **settings: Any) -> Any:
    given: dict[str, Any] = {
        "epsilon": 0.3,
        "max_new_tokens": 12,
        "alignment": ALIGNMENT,
        "pad_token_id": 0,
        "temperature": TEMPERATURE,
        "generator": torch.Generator().manual_seed(4),
    }
    return DECODERS[name](tiny(seed=0), teacher, *PROMPTS, **given | settings)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_the_teacher_s_log_probs_are_those_of_the_mean(name: str, mean: Any) -> None:
    teachers = [tiny(seed=1), tiny(seed=2)]
    weights = torch.tensor([[0.3, 0.7], [1, 0], [0, 1], [0.5, 0.5], [0, 2], [0.9, 0.1]])
    rollout = decoded(name, mixture(teachers, weights, mean=mean))
    assert rollout.lengths.min() < rollout.lengths.max()
    for row, (one, two) in enumerate((weights / weights.sum(1, keepdim=True)).double()):
        parts = [
            (ALIGNMENT.canonical(completion_logits(teacher, PROMPTS, rollout, row), TEMPERATURE) / TEMPERATURE)
            .double()
            .log_softmax(-1)
            for teacher in teachers
        ]
        if mean == "arithmetic":
            log_prob = (one * parts[0].exp() + two * parts[1].exp()).log()
        else:
            blended = [share * part for share, part in zip((one, two), parts, strict=True) if share > 0]
            log_prob = sum(blended).log_softmax(-1)
        length = int(rollout.lengths[row])
        expected = log_prob.gather(-1, rollout.tokens[row, :length, None])[:, 0]
        torch.testing.assert_close(rollout.teacher_log_prob[row, :length].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_one_teacher_in_a_mixture_is_that_teacher_and_others_are_not_called(name: str, mean: Any) -> None:
    expected = decoded(name, tiny(seed=1, dtype=torch.float32))
    idle = tiny(seed=2)
    with torch.no_grad():
        cannot_roll_back(idle)  # which calls it
    given = [raising(idle), tiny(seed=1, dtype=torch.float32)]
    assert_same(decoded(name, mixture(given, [0, 3], mean=mean), check=False), expected)
    routed = torch.tensor([[0.0, 1.0]]).repeat(6, 1)
    assert_same(decoded(name, mixture(given, routed, mean=mean), check=False), expected)


def test_rows_that_are_routed_are_read_by_their_teacher_only() -> None:
    teachers = [tiny(seed=1), tiny(seed=2)]
    read: list[list[int]] = [[], []]
    for teacher, rows in zip(teachers, read, strict=True):
        teacher.model.register_forward_pre_hook(
            lambda _, args, kwargs, rows=rows: rows.append(len(kwargs["input_ids"])), with_kwargs=True
        )
    routes = torch.eye(2)[torch.tensor([0, 1, 0, 0, 1, 0])]
    rollout = decoded("lockstep", mixture(teachers, routes), check=False)
    assert read[0][0] == 4
    assert read[1][0] == 2
    assert max(read[0][1:]) <= 4
    for row, teacher in enumerate(teachers[int(route)] for route in routes[:, 1]):
        logits = ALIGNMENT.canonical(completion_logits(teacher, PROMPTS, rollout, row), TEMPERATURE) / TEMPERATURE
        length = int(rollout.lengths[row])
        expected = logits.log_softmax(-1).gather(-1, rollout.tokens[row, :length, None])[:, 0].float()
        torch.testing.assert_close(rollout.teacher_log_prob[row, :length], expected, rtol=1e-4, atol=1e-4)


def test_vocabularies_and_eos_ids_of_all_teachers_are_aligned() -> None:
    student = tiny_llama(0)
    teachers = [tiny_llama(1, vocab_size=70, eos=2), tiny_llama(2, vocab_size=64, eos=[1, 3])]
    assert align(student, mixture(teachers)) == Alignment(64, (1,), (2, 1, 3))


@pytest.mark.parametrize("least", [1e-9, 1e-17])
def test_a_weight_that_rounds_to_1_is_not_taken_for_a_teacher_alone(least: float) -> None:
    """Raw logits far below 0 would lose to the other teacher's log-probabilities."""
    one, two = tiny(seed=1), tiny(seed=2)
    low = decoded("lockstep", mixture([lambda ids: one(ids).logits - 80, two], [1.0, least], mean="arithmetic"))
    torch.testing.assert_close(low.teacher_log_prob, decoded("lockstep", one).teacher_log_prob, rtol=1e-4, atol=1e-4)


def test_wrong_weights_and_teachers_are_refused() -> None:
    one = tiny()
    for weights, message in [
        ([1.0], r"one for each of the 2 teachers, \[2\] or \[B, 2\], got shape \[1\]"),
        ([0.0, 0.0], "one is above 0"),
        ([[1.0, 0.0], [0.0, 0.0]], "one is above 0"),
        ([1.0, -0.5], "numbers >= 0"),
        ([1.0, float("nan")], "numbers >= 0"),
        ("ab", "one for each of the 2 teachers, got 'ab'"),
    ]:
        with pytest.raises(ValueError, match=message):
            mixture([one, one], weights)
    with pytest.raises(TypeError, match="must be a list, or a mapping from labels, got LlamaForCausalLM"):
        mixture(one)
    with pytest.raises(ValueError, match="at least one teacher"):
        mixture([])
    with pytest.raises(ValueError, match="no mixture itself"):
        mixture([mixture([one]), one])

    class Told:
        def next_tokens(self, prefixes: Any, alignment: Any) -> Any: ...

        def score(self, sequences: Any, starts: Any, alignment: Any) -> Any: ...

    with pytest.raises(ValueError, match="must give logits, and a Told is a top-k teacher"):
        mixture([one, Told()])
    with pytest.raises(ValueError, match="mean must be one of geometric, arithmetic, got 'harmonic'"):
        mixture([one], mean="harmonic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights of 2 rows, and the batch has 6 prompts"):
        decoded("lockstep", mixture([one, one], [[1, 0], [0, 1]]))
