"""A model of any kind that yields next-token logits decodes as a Hugging Face model does, as student and as teacher."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.rollout.rollout_cases import PROMPTS, assert_same, left_padded, tiny
from trbext import NextTokenModel, Rollout, lockstep, mixture, speculative
from trbext.errors import NonFiniteLogits
from trbext.vocab import Alignment, VocabularyMismatch, align

SETTINGS: dict[str, Any] = {
    "epsilon": 0.3,
    "max_new_tokens": 10,
    "alignment": Alignment(11, (2,), (2, 5)),
    "pad_token_id": 0,
}
DECODERS: dict[str, Callable[..., Rollout]] = {
    "lockstep": lockstep,
    "speculative": lambda *args, **kwargs: speculative(*args, draft_length=3, **kwargs),
}


class Recorded:
    """A `NextTokenModel` that scores each row by itself, and remembers how many tokens were taken back."""

    vocab_size = 11
    eos_token_ids = (2, 5)

    def __init__(self, model: Any) -> None:
        self.model = model
        self.taken_back = 0
        self.widest: list[int] = []

    def prefill(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Any]:
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        prefixes = RecordedPrefixes(self, rows)
        return torch.stack([prefixes.scored(row)[-1] for row in rows]), prefixes


class RecordedPrefixes:
    def __init__(self, owner: Recorded, rows: list[list[int]]) -> None:
        self.owner, self.rows = owner, rows

    def scored(self, row: list[int]) -> Tensor:
        logits: Tensor = self.owner.model(torch.tensor([row]), use_cache=False).logits[0]
        return logits

    def advance(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        self.owner.widest.append(len(self.rows))
        found = []
        for number, (new, kept) in enumerate(zip(tokens.tolist(), lengths.tolist(), strict=True)):
            assert kept <= len(self.rows[number])
            self.owner.taken_back += len(self.rows[number]) - kept
            self.rows[number] = self.rows[number][:kept] + new
            found.append(self.scored(self.rows[number])[kept:])
        return torch.stack(found)

    def keep_rows(self, rows: Tensor) -> None:
        self.rows = [self.rows[row] for row in rows.tolist()]


def decoded(decode: Callable[..., Rollout], student: Any, teacher: Any, **settings: Any) -> Rollout:
    return decode(student, teacher, *PROMPTS, generator=torch.Generator().manual_seed(5), **SETTINGS | settings)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", ["function", "protocol"])
def test_a_model_of_any_kind_decodes_as_the_same_hugging_face_model(name: str, kind: str) -> None:
    student, teacher = tiny(seed=0), tiny(seed=1)
    expected = decoded(DECODERS[name], student, teacher)
    assert expected.lengths.min() < expected.lengths.max()  # rows leave the batch
    if kind == "function":
        others = [lambda ids, model=model: model(ids, use_cache=False).logits for model in (student, teacher)]
    else:
        others = [Recorded(model) for model in (student, teacher)]
    assert_same(decoded(DECODERS[name], *others), expected, 2e-6)
    assert_same(decoded(DECODERS[name], student, others[1]), expected, 2e-6)
    if kind == "protocol":
        assert isinstance(others[0], NextTokenModel)
        assert (others[1].taken_back > 0) == (name == "speculative")
        assert others[0].widest[-1] < others[0].widest[0]


@pytest.mark.parametrize("draft_length", [3, 20, "auto"])
@pytest.mark.parametrize("fault", [torch.nan, -torch.inf])
def test_what_a_model_says_after_the_end_of_a_completion_does_not_matter(fault: float, draft_length: Any) -> None:
    """A decoder of a grammar has no token after the stop token, and a table of positions has an end."""
    prompts = left_padded([3, 4, 5], [7, 8, 9])
    position = torch.randn(3 + 10 - 1, 11, generator=torch.Generator().manual_seed(0))

    def ended(seed: int) -> Any:
        table = 2 * torch.randn(11, 11, generator=torch.Generator().manual_seed(seed))

        def logits(ids: Tensor) -> Tensor:
            found = table[ids] + position[torch.arange(ids.shape[1])]
            return found.masked_fill((ids == 2).cumsum(1)[..., None] > 0, fault)

        return logits

    def drawn(decode: Any, models: Any, seed: int, **more: Any) -> Rollout:
        return decode(*models, *prompts, generator=torch.Generator().manual_seed(seed), **SETTINGS | more)

    whole = ended(1), tiny(seed=1)
    for models in ((ended(1), ended(2)), whole, whole[::-1], (ended(1), mixture([ended(2), tiny(seed=1)]))):
        for seed in range(6):
            expected = drawn(speculative, models, seed, draft_length=1)
            found = drawn(speculative, models, seed, draft_length=draft_length)
            assert_same(found, expected, 2e-6)
            drawn(lockstep, models, seed)


@pytest.mark.parametrize("config", [None, SimpleNamespace(vocab_size=12)])  # one of its own is none of transformers
def test_a_module_without_a_config_is_a_function_of_ids(config: Any) -> None:
    student, teacher = tiny(seed=0), tiny(seed=1)

    class Plain(torch.nn.Module):
        vocab_size = 11

        def __init__(self) -> None:
            super().__init__()
            self.inner = teacher
            self.config = config

        def forward(self, ids: Tensor) -> Tensor:
            assert not self.training
            logits: Tensor = self.inner(ids, use_cache=False).logits
            return logits

    plain = Plain().train()
    assert_same(decoded(lockstep, student, plain), decoded(lockstep, student, teacher), 2e-6)
    assert plain.training
    assert align(student, plain) == Alignment(11, (2,), ())


def test_faults_of_such_models_are_named() -> None:
    student = tiny(seed=0)
    with pytest.raises(TypeError, match=r"teacher must be a transformers causal LM, .* got int"):
        decoded(lockstep, student, 3)
    with pytest.raises(ValueError, match=r"must return \[B, S, V\] for ids .* got shape \[6, 11\]"):
        decoded(lockstep, student, lambda ids: student(ids).logits[:, -1])
    with pytest.raises(TypeError, match=r"must return a tensor .*model\(ids\)\.logits\), got CausalLMOutputWithPast"):
        decoded(lockstep, student, lambda ids: student(ids))
    with pytest.raises(NonFiniteLogits, match="logits of the teacher hold NaN"):
        decoded(lockstep, student, lambda ids: student(ids).logits * torch.nan)

    class Short(Recorded):
        def prefill(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Any]:
            logits, prefixes = super().prefill(input_ids, attention_mask)
            return logits[:1], prefixes

    with pytest.raises(ValueError, match=r"the teacher Short must return .* \[6, 1, V\]"):
        decoded(lockstep, student, Short(student))

    class Logits(Recorded):
        def prefill(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return super().prefill(input_ids, attention_mask)[0][:2]  # as many as a pair has

    with pytest.raises(
        ValueError, match="the teacher Logits must return logits and prefixes after prefill, got Tensor"
    ):
        decoded(lockstep, student, Logits(student))

    class Silent(Recorded):
        def prefill(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            logits, prefixes = super().prefill(input_ids, attention_mask)
            prefixes.advance = lambda *_: None  # type: ignore[method-assign]
            return logits, prefixes

    with pytest.raises(ValueError, match=r"the teacher Silent must return .* \[6, 1, V\] .* got NoneType"):
        decoded(lockstep, student, Silent(student))


def test_it_is_aligned_by_what_it_declares() -> None:
    student = tiny(seed=0)
    assert align(student, Recorded(student)) == Alignment(11, (2,), (2, 5))
    with pytest.raises(VocabularyMismatch, match="must say its number of logits as vocab_size"):
        align(student, lambda ids: ids)
