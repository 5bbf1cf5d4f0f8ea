"""Speculation serves what it can verify: other policies, caches and models are decoded in lockstep, with a warning."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from python_tests.rollout.rollout_cases import FAMILIES, PAD, PROMPTS, assert_same, tiny
from python_tests.rollout.test_speculative import ROLLS_BACK, roll
from trbext.models.cached_model import cache_argument
from trbext.rollout import Rollout, TrustRegion, lockstep, speculative
from trbext.vocab import Alignment


def test_zero_drafts_a_zero_budget_and_other_policies_are_lockstep() -> None:
    student, teacher = tiny(seed=1), tiny(seed=2)
    assert_same(roll(student, teacher, draft_length=0), roll(student, teacher, decode=lockstep))
    pure = roll(student, None, epsilon=0.0, draft_length=4)
    assert torch.equal(pure.tokens, roll(student, None, epsilon=0.0, decode=lockstep).tokens)
    assert pure.speculation is None
    later = roll(student, teacher, policy=TrustRegion(lambda step: 0.1 if step < 3 else 0.0), optimizer_step=3)
    assert torch.equal(later.tokens, pure.tokens)
    earlier = roll(student, teacher, policy=TrustRegion(lambda step: 0.1 if step < 3 else 0.0), optimizer_step=2)
    assert_same(earlier, roll(student, teacher), tolerance=1e-6)
    assert earlier.speculation is not None


def test_a_budget_beyond_float32_is_no_limit() -> None:
    student, teacher = tiny(seed=1), tiny(seed=2)
    found, unlimited = (roll(student, teacher, epsilon=epsilon, draft_length=2) for epsilon in (1e39, math.inf))
    assert_same(found, unlimited)
    assert found.speculation is not None


def test_a_policy_that_draws_by_itself_is_asked() -> None:
    """Drafts are verified against the blend of a budget, so a user's `draw` decides in lockstep only."""

    class OfTheTeacher(TrustRegion):
        def draw(self, step: int, student_logits: Tensor, teacher_logits: Any, *others: Any) -> Any:
            return super().draw(step, teacher_logits, teacher_logits, *others)

    student, teacher = tiny(seed=1), tiny(seed=2)
    found = roll(student, teacher, policy=OfTheTeacher(0.1), draft_length=3)
    assert found.speculation is None
    assert torch.equal(found.tokens, roll(student, teacher, policy=TrustRegion(math.inf), decode=lockstep).tokens)
    of_rows = OfTheTeacher(torch.tensor([0.1, 0.2])).keep_rows(torch.tensor([1]))
    assert type(of_rows) is OfTheTeacher
    assert of_rows.epsilon(0) == pytest.approx(0.2)


def test_rows_may_have_generators_of_their_own() -> None:
    def drawn(*seeds: int) -> Rollout:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return speculative(
            *(tiny(seed=1), tiny(seed=2), *PROMPTS),
            **{"epsilon": 0.1, "max_new_tokens": 4, "alignment": Alignment(11, (2,), (2,)), "pad_token_id": PAD},
            generator=generators,
            draft_length=2,
        )

    one, other = drawn(1, 2, 3, 4, 5, 6), drawn(1, 9, 3, 9, 9, 9)
    assert one.speculation is not None
    for row in (0, 2):  # those of the same seed, whatever the others draw
        length = int(one.lengths[row])
        assert torch.equal(one.tokens[row, :length], other.tokens[row, :length])
    assert not torch.equal(one.tokens[[1, 3, 4, 5]], other.tokens[[1, 3, 4, 5]])


def test_a_model_that_computes_in_half_precision_inside_its_forward_is_drafted() -> None:
    """As accelerate wraps a float32 model that trains in bfloat16."""

    def wrapped(model: PreTrainedModel) -> PreTrainedModel:
        plain = model.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return plain(*args, **kwargs)

        model.forward = forward
        return model

    student, teacher = (wrapped(tiny(seed=seed, dtype=torch.float32)) for seed in (1, 2))
    assert roll(student, teacher, draft_length=3).speculation is not None


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ROLLS_BACK])
def test_a_cache_that_cannot_roll_back_is_decoded_in_lockstep_with_a_warning(family: str) -> None:
    student, teacher = tiny(family, seed=1), tiny(family, seed=2)
    with pytest.warns(UserWarning, match=f"decoding in lockstep: {type(student).__name__} has a cache of"):
        rollout = roll(student, teacher, draft_length=4)
    assert_same(rollout, roll(student, teacher, decode=lockstep))


def test_a_model_that_makes_its_own_positions_is_found_out() -> None:
    student, teacher = tiny(seed=1), tiny(seed=2)
    plain = teacher.model.forward

    def forward(*args: Any, position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)  # which counts the columns of the cache instead

    teacher.model.forward = forward
    with pytest.warns(UserWarning, match="LlamaForCausalLM gives other logits after a token was taken back"):
        roll(student, teacher, draft_length=4)


@pytest.mark.parametrize("decode", [lockstep, partial(speculative, draft_length=3)])
def test_compiled_models_decode_as_themselves(decode: Any) -> None:
    """A compiled model hides the signature of its forward, by which positions and the cache are given to it."""
    student, teacher = tiny(seed=1), tiny("gpt2", seed=2)
    compiled = [torch.compile(model, backend="eager") for model in (student, teacher)]
    for check in (False, True):
        given: dict[str, Any] = {"decode": decode, "max_new_tokens": 6, "check": check}
        expected = roll(student, teacher, **given)
        with torch.compiler.set_stance("force_eager"):  # to compile takes a minute
            found = roll(*compiled, **given)
        assert_same(found, expected, tolerance=1e-6)
        assert (found.speculation is None) == (expected.speculation is None)


class TakesCache(LlamaForCausalLM):
    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, position_ids: Any = None, cache: Any = None, **kwargs: Any
    ) -> Any:
        return called_by_its_own_name(self, cache, "cache", input_ids, attention_mask, position_ids, **kwargs)


class TakesPastKeyValues(LlamaForCausalLM):
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        name = "past_key_values"
        return called_by_its_own_name(self, past_key_values, name, input_ids, attention_mask, position_ids, **kwargs)


def called_by_its_own_name(model: Any, cache: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    own = OWN_CACHE_ARGUMENT
    output = LlamaForCausalLM.forward(model, *args, **{own: cache}, **kwargs)
    return SimpleNamespace(logits=output.logits, **{name: output[own]})


OWN_CACHE_ARGUMENT = cache_argument(tiny())


@pytest.mark.parametrize("model_class", [TakesCache, TakesPastKeyValues])
def test_a_model_may_call_its_cache_by_the_old_name_or_the_new(model_class: type[LlamaForCausalLM]) -> None:
    """transformers 5.24 renamed it, and models of other origin keep the old name."""
    student, teacher = tiny(seed=1), tiny(seed=2)
    ways = (partial(roll, draft_length=3), partial(roll, decode=lockstep))
    expected = [way(student, teacher) for way in ways]
    for model in (student, teacher):
        model.__class__ = model_class
    found = [way(student, teacher) for way in ways]
    assert found[0].speculation is not None
    for one, two in zip(found, expected, strict=True):
        assert_same(one, two)
