"""Looks up the words of a relay in a tokenizer, and trains with Relay-OPD's loss on what both models wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from python_tests.models.tiny_models import END_OF_TURN, tiny_llama, tiny_tokenizer
from python_tests.training.test_config import config
from python_tests.training.trainer_cases import make_trainer, steps
from trbext.rollout import Rollout
from trbext.rollout.policies_with_memory import Relay
from trbext.training.fields.turns import REFLECTION_WORDS, ids_of_words

TEXTS = ["<pad>", "<unk>", "Wait", " wait", "wait", " But", "but.", "WAIT", "a", ".\n\n", "\n\n", "\n", " WAIT"]


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose tokens are these texts, each of which it finds only if it is the whole text."""
    tokenizer = Tokenizer(models.WordLevel({text: index for index, text in enumerate(texts)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def test_words_are_found_in_any_case_with_a_space_or_without_and_below_the_common_width() -> None:
    found = ids_of_words(tokenizer_of(TEXTS), REFLECTION_WORDS.split(","), len(TEXTS))
    assert [TEXTS[token] for token in found] == ["Wait", " wait", "wait", " But", "WAIT", " WAIT"]
    assert ids_of_words(tokenizer_of(TEXTS), ["wait"], 4) == (2, 3)
    assert ids_of_words(tokenizer_of(TEXTS), ["xyz", ""], 20) == ()


def test_a_tokenizer_without_an_unknown_token_skips_the_words_that_it_cannot_write() -> None:
    for texts, found in ((["<pad>", "wait", "\n\n"], (1,)), (["<pad>", "1", "2"], ())):
        model = models.WordLevel({text: index for index, text in enumerate(texts)}, unk_token="[UNK]")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), pad_token="<pad>")
        assert ids_of_words(tokenizer, REFLECTION_WORDS.split(","), len(texts)) == found
    with pytest.raises(ValueError, match=r"relay_words must hold a word that is one token .*; name another, or leave"):
        config(rollout_policy="relay").read_tokenizer(tokenizer, len(texts))


def test_boundaries_are_the_tokens_that_hold_the_text() -> None:
    run = config(rollout_policy="relay")
    run.read_tokenizer(tokenizer_of(TEXTS), len(TEXTS))
    policy = run.policy(total_steps=10)
    assert isinstance(policy, Relay)
    assert policy.words == (2, 3, 4, 5, 7, 12)
    assert policy.boundary == (9, 10)
    assert (policy.top_k, policy.legs, policy.leg_length) == (5, 2, 3)  # Relay-OPD's
    any_token = config(rollout_policy="relay", relay_words="", relay_boundary="")
    any_token.read_tokenizer(tokenizer_of(TEXTS), len(TEXTS))
    assert (any_token.policy(10).words, any_token.policy(10).boundary) == (None, None)


def test_before_the_tokenizer_is_known_a_relay_is_never_triggered() -> None:
    policy = config(rollout_policy="relay").policy(total_steps=10)
    a, b = torch.randn(2, 50, 9, generator=torch.Generator().manual_seed(0))
    assert not policy.triggered(a, b).any()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "relay_words must hold a word that is one token of the student, got 'Wait,But"),
        ({"relay_words": "a,b"}, r"relay_boundary must be in the text of a token of the student, got '\\n\\n'"),
    ],
)
def test_words_that_a_student_does_not_have_are_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        make_trainer(tmp_path, rollout_policy="relay", **fields)
    make_trainer(tmp_path, **fields)  # they are of no other policy


def test_a_relay_trains_on_the_tokens_of_both_models_by_the_reverse_kl_of_each(
    tmp_path: Path, drawn: list[Rollout]
) -> None:
    letters = ",".join("abcdefghijklmnopqrstuvwxyz")
    trainer = make_trainer(
        tmp_path,
        None,
        tiny_llama(1, hidden=32, eos=END_OF_TURN),
        rollout_policy="relay",
        relay_words=letters,
        relay_boundary="",
        relay_top_k=1,
        relay_leg_length=1,
        loss_estimator="sampled",
        loss_weighted=False,
        max_steps=2,
    )
    trainer.train()
    assert trainer.policy.words is not None
    assert len(trainer.policy.words) == 26 + 8  # upper case up to H
    written = [(rollout.beta == 1)[rollout.mask] for rollout in drawn]
    assert 0 < float(torch.cat(written).float().mean()) < 1
    for log, rollout in zip(steps(trainer), drawn, strict=True):
        ratio = (rollout.student_log_prob - rollout.teacher_log_prob)[rollout.mask]
        assert log["loss"] == pytest.approx(ratio.mean().item(), rel=1e-4, abs=1e-5)
    assert tiny_tokenizer().unk_token_id not in trainer.policy.words
