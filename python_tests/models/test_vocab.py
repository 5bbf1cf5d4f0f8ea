"""Tests `trbext.vocab`, which aligns two vocabularies: widths, EOS sets, token ids."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trbext.vocab import Alignment, VocabularyMismatch, align, check_tokenizers


def tokenizer(*words: str, added: tuple[str, ...] = (), eos: str | None = None) -> PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}))
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos)
    fast.add_tokens(list(added))
    return fast


def model(vocab_size: int, eos: int | list[int] | None, *, config_eos: int | None = None) -> LlamaForCausalLM:
    sizes = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=vocab_size, eos_token_id=config_eos, bos_token_id=None, **sizes)
    built = LlamaForCausalLM(config)
    built.generation_config.eos_token_id = eos
    return built


def test_equal_tokenizers_pass_whatever_the_order_of_their_entries() -> None:
    check_tokenizers(tokenizer("a", "b", added=("<x>",)), tokenizer("a", "b", added=("<x>",)))


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (tokenizer("a", "b", "c", "d"), tokenizer("a", "c", "b", "d"), "'b' has id 1 in the student's and id 2 in the"),
        (
            tokenizer("a", "b", "x", "d"),
            tokenizer("a", "b", "y", "d"),
            "'x' has id 2 in the student's and no id in the",
        ),
        (
            tokenizer("a", "b"),
            tokenizer("a", "b", "c", "d"),
            "'c' has no id in the student's and id 2 in the teacher's",
        ),
        (
            tokenizer("a", added=("<t>",)),
            tokenizer("a", "b", added=("<t>",)),
            "'<t>' has id 1 in the .* and id 2 in the",
        ),
        (
            tokenizer("a", added=("<s>",)),
            tokenizer("a", added=("<t>",)),
            "'<s>' has id 1 in the student's and no id in",
        ),
    ],
    ids=["swapped", "replaced", "longer", "added token moved", "added token replaced"],
)
def test_the_first_differing_token_is_named_with_both_ids(
    student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, message: str
) -> None:
    with pytest.raises(VocabularyMismatch, match=message):
        check_tokenizers(student, teacher)


def test_slices_are_views_of_the_logits_if_nothing_is_merged() -> None:
    alignment = Alignment(151, (2,), (2,))
    assert alignment.is_slice
    logits = torch.randn(3, 160)
    common = alignment.canonical(logits)
    assert common.shape == (3, 151)
    assert common.data_ptr() == logits.data_ptr()
    assert torch.equal(common, logits[:, :151])


def canonical_probabilities(logits: Tensor, width: int, stop: int, eos: set[int], temperature: float) -> Tensor:
    """Computes p~(v) = sum over u with phi(u) = v of p(u) term by term in float64."""
    probabilities = (logits[..., :width].double() / temperature).softmax(-1)
    result = torch.zeros_like(probabilities)
    for token in range(width):
        result[..., stop if token in eos else token] += probabilities[..., token]
    return result


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_merged_logits_are_the_papers_stop_event(dtype: torch.dtype, temperature: float) -> None:
    alignment = Alignment(11, (2, 5), (3, 7, 2))
    assert alignment.stop == 2
    assert alignment.duplicates == (5, 3, 7)
    assert not alignment.is_slice
    logits = (4 * torch.randn(6, 4, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).to(dtype)
    before = logits.clone()
    common = alignment.canonical(logits, temperature)
    assert torch.equal(logits, before)
    assert common.dtype == dtype
    assert common.shape == (6, 4, 11)
    others = [0, 1, 4, 6, 8, 9, 10]
    assert torch.equal(common[..., others], logits[..., others])
    assert (common[..., [3, 5, 7]] == -torch.inf).all()
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 5e-2}[dtype]
    expected = canonical_probabilities(logits, 11, 2, {2, 3, 5, 7}, temperature)
    assert ((common.double() / temperature).softmax(-1) - expected).abs().max() < tolerance
    in_place = alignment.canonical(logits, temperature, in_place=True)
    assert torch.equal(in_place, common)
    assert in_place.data_ptr() == logits.data_ptr()
    assert torch.equal(logits[..., 11:], before[..., 11:])


def test_stop_mass_is_the_mass_of_both_models_eos_ids() -> None:
    logits = torch.tensor([0.1, 0.2, 0.15, 0.3, 0.25], dtype=torch.float64).log()
    probabilities = Alignment(5, (1,), (3,)).canonical(logits).exp()
    torch.testing.assert_close(probabilities, torch.tensor([0.1, 0.5, 0.15, 0.0, 0.25], dtype=torch.float64))


def test_a_row_whose_eos_ids_are_all_masked_has_a_gradient() -> None:
    alignment = Alignment(5, (1,), (4,))
    logits = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    # Added, as models mask tokens: masked_fill would also stop the gradient.
    mask = torch.zeros(2, 5, dtype=torch.float64)
    mask[0, [1, 4]] = -torch.inf
    common = alignment.canonical(logits + mask)
    assert common[0, 1] == -torch.inf
    common.logsumexp(-1).sum().backward()
    expected = (logits + mask).detach().softmax(-1)
    torch.testing.assert_close(logits.grad, expected)


def test_gradients_flow_through_the_merge() -> None:
    alignment = Alignment(5, (1,), (4,))
    logits = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def stop_log_prob(raw: Tensor) -> Tensor:
        return alignment.canonical(raw, 0.7).log_softmax(-1)[..., [0, 1]]

    assert torch.autograd.gradcheck(stop_log_prob, (logits,))
    stop_log_prob(logits)[..., 1].sum().backward()
    assert (logits.grad[:, [1, 4]] > 0).all()
    assert (logits.grad[:, 5] == 0).all()


def test_alignment_takes_the_smaller_width_and_every_eos_id_that_generate_stops_at() -> None:
    alignment = align(model(151, 2), model(160, [3, 7]))
    assert alignment == Alignment(151, (2,), (3, 7))
    assert align(model(160, [3, 7]), model(151, 2)) == Alignment(151, (3, 7), (2,))
    assert align(model(9, None, config_eos=4), model(9, None)) == Alignment(9, (4,), ())
    # A config keeps its class's default EOS id; if generation_config names others, that id is an ordinary token.
    assert align(model(9, 5, config_eos=2), model(9, 6, config_eos=2)) == Alignment(9, (5,), (6,))


def test_the_tokenizers_eos_joins_the_set_behind_the_models_own() -> None:
    words = ("a", "b", "<end>", "<eot>")
    alignment = align(model(4, 3), model(4, [3]), tokenizer(*words, eos="<end>"), tokenizer(*words, eos="<eot>"))
    assert alignment == Alignment(4, (3, 2), (3,))


def test_tokenizers_are_checked_when_models_are_aligned() -> None:
    with pytest.raises(VocabularyMismatch, match="'b' has id 1"):
        align(model(4, 3), model(4, 3), tokenizer("a", "b"), tokenizer("a", "c"))


def test_a_token_without_a_logit_in_the_narrower_model_is_named() -> None:
    words = tokenizer("a", "b", "c", "d")
    with pytest.raises(VocabularyMismatch, match="'d' has id 3, but the student has 3 logits and the teacher 5"):
        align(model(3, 0), model(5, 0), words, words)
    assert align(model(4, 0), model(5, 0), words, words).width == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, (4,), ()), r"the student's EOS id 4 must lie .* \[0, 4\)"),
        ((4, (1,), (2, 9)), r"the teacher's EOS id 9 must lie .* \[0, 4\)"),
        ((4, (-1,), ()), "the student's EOS id -1"),
        ((4, (), (1,)), "the student has no EOS id"),
    ],
)
def test_eos_ids_outside_the_common_vocabulary_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(VocabularyMismatch, match=message):
        Alignment(*arguments)


def test_eos_ids_may_be_any_whole_numbers_and_are_a_tuple() -> None:
    found = Alignment(4, [np.int64(1), torch.tensor(3)], range(2))  # type: ignore[arg-type, list-item]
    assert (found.student_eos, found.teacher_eos, found.duplicates) == ((1, 3), (0, 1), (3, 0))
    assert {type(token) for token in found.student_eos} == {int}


@pytest.mark.parametrize("ids", [1, None, (1.0,), ("1",)])
def test_eos_ids_that_are_none_are_refused(ids: Any) -> None:
    for name, arguments in (("student_eos", (ids, (1,))), ("teacher_eos", ((1,), ids))):
        with pytest.raises(ValueError, match=re.escape(f"{name} must be a tuple of token ids, got {ids!r}")):
            Alignment(4, *arguments)


def test_logits_narrower_than_the_alignment_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits must have at least 5 entries, got shape \(2, 4\)"):
        Alignment(5, (1,), ()).canonical(torch.zeros(2, 4))
