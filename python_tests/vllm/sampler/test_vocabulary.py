"""The in-place vocabulary of an engine is the alignment of the trainer, with a temperature for each row."""

from __future__ import annotations

import pytest
import torch

from trbext.vllm.sampler.vocabulary import Vocabulary
from trbext.vocab import Alignment


@pytest.mark.parametrize("width", [12, 10])
def test_it_does_in_place_what_the_alignment_does(width: int) -> None:
    logits = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    temperature = torch.tensor([0.5, 0.7, 1.0, 1.3, 2.0])
    alignment = Alignment(width, student_eos=(2,), teacher_eos=(3, 7))
    expected = torch.stack(
        [alignment.canonical(row[None], float(t))[0] for row, t in zip(logits, temperature, strict=True)]
    )
    Vocabulary(width, alignment.stop, alignment.duplicates).canonical_(logits, temperature)
    torch.testing.assert_close(logits[:, :width], expected)
    assert (logits[:, width:] == -torch.inf).all()


def test_a_second_time_changes_nothing() -> None:
    vocabulary, temperature = Vocabulary(10, 2, (3,)), torch.tensor([0.7])
    once = vocabulary.canonical_(torch.randn(1, 12, generator=torch.Generator().manual_seed(1)), temperature).clone()
    torch.testing.assert_close(vocabulary.canonical_(once.clone(), temperature), once)


def test_models_of_one_vocabulary_are_left_as_they_are() -> None:
    logits = torch.randn(3, 8)
    before = logits.clone()
    assert torch.equal(Vocabulary(8).canonical_(logits, torch.ones(3)), before)


@pytest.mark.parametrize(
    ("vocabulary", "top_k", "message"),
    [
        (Vocabulary(13), 0, "width must be at most 12, which both models have, got 13"),
        (Vocabulary(0, 12), 0, "stop must be of the 12 ids that both models have, got 12"),
        (Vocabulary(10, 2, (3, 10)), 0, "merged must be of the 10 ids that both models have, got 10"),
        (Vocabulary(10, 2), 11, "top_k must be at most the 10 tokens that both models have, got 11"),
    ],
)
def test_ids_that_a_model_lacks_are_refused(vocabulary: Vocabulary, top_k: int, message: str) -> None:
    Vocabulary(0, 11, (3,)).check([14, 12], 12)
    with pytest.raises(ValueError, match=message):
        vocabulary.check([14, 12], top_k)
