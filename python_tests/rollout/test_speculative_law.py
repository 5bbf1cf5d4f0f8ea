"""Compares the law of speculative rollouts with mu: all completions of tiny models against 200,000 rollouts.

The test is chi-square with fixed seeds, corrected by Holm over all tests of a case; each planted fault of the scheme
must be detected.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import trbext
from python_tests.rollout.rollout_cases import (
    FAMILIES,
    PAD,
    completion_counts,
    left_padded,
    p_value_of_counts,
    sequence_law,
    tiny,
)
from trbext import reference
from trbext.results import Verification
from trbext.rollout import speculative
from trbext.vocab import Alignment

loop = importlib.import_module("trbext.rollout.speculative_rounds")
FIRST, SECOND = [3, 4], [1, 3, 3, 4]


def holm(p_values: list[float]) -> float:
    """Returns the smallest p-value, corrected for their number: it is below alpha exactly if Holm's procedure rejects
    any."""
    return min(1.0, min(p_values) * len(p_values))


def p_values_of_batches(
    draft_length: int,
    batch: int,
    *,
    epsilon: float,
    vocab: int,
    length: int,
    rollouts: int,
    seed: int = 0,
    family: str = "llama",
) -> Iterator[float]:
    """Returns the p-values of the completions of both prompts, half of each batch; student and teacher stop in
    different ways."""
    student = tiny(family, vocab=vocab, seed=1, dtype=torch.float32)
    teacher = tiny(family, vocab=vocab + 1, seed=3, dtype=torch.float32)
    alignment = Alignment(vocab, (2,), (4, 2))
    laws = [sequence_law(student, teacher, prompt, epsilon, alignment, length) for prompt in (FIRST, SECOND)]
    assert all(abs(sum(law.values()) - 1) < 1e-9 for law in laws)
    half = batch // 2
    prompts = tuple(part.repeat_interleave(half, 0) for part in left_padded(FIRST, SECOND, width=5))
    generator = torch.Generator().manual_seed(seed)
    counts: list[Counter[tuple[int, ...]]] = [Counter(), Counter()]
    for _ in range(rollouts // batch):
        rollout = speculative(
            student,
            teacher,
            *prompts,
            epsilon=epsilon,
            max_new_tokens=length,
            alignment=alignment,
            pad_token_id=PAD,
            draft_length=draft_length,
            generator=generator,
        )
        for part, rows in zip(counts, (slice(half), slice(half, None)), strict=True):
            part += completion_counts(rollout, rows)
    for law, part in zip(laws, counts, strict=True):
        yield p_value_of_counts(law, part, bins_above=10)


@pytest.mark.parametrize(
    ("epsilon", "vocab", "length", "shapes"),
    [
        (0.02, 6, 3, [(1, 35_000), (2, 2_000), (4, 70_000)]),
        pytest.param(0.3, 5, 4, [(2, 35_000), (3, 2_000), (8, 70_000)], marks=pytest.mark.nightly),
        pytest.param(3.0, 7, 3, [(1, 35_000), (2, 70_000), (3, 10_000)], marks=pytest.mark.nightly),
    ],
)
def test_completions_follow_mu_at_any_draft_length_and_batch(
    epsilon: float, vocab: int, length: int, shapes: list[tuple[int, int]]
) -> None:
    found = [
        p
        for seed, (draft_length, batch) in enumerate(shapes)
        for p in p_values_of_batches(
            draft_length, batch, epsilon=epsilon, vocab=vocab, length=length, rollouts=70_000, seed=seed
        )
    ]
    assert holm(found) > 0.01, found


@pytest.mark.parametrize("family", ["mistral", "qwen2 with a sliding window"])
def test_the_law_holds_past_a_sliding_window(family: str) -> None:
    settings: dict[str, Any] = {"epsilon": 0.3, "vocab": 5, "length": 4, "rollouts": 70_000, "family": family}
    assert holm(list(p_values_of_batches(3, 35_000, **settings))) > 0.01  # prompts of 2 and 4, a window of 4


WINDOWED = {
    "mistral": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma2": {"sliding_window": 4, "head_dim": 8},
    "cohere2": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_oss": {"sliding_window": 4, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
}


@pytest.mark.parametrize("family", WINDOWED)
def test_acceptance_past_a_sliding_window_is_the_overlap_of_both_laws(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, family, WINDOWED[family])
    student, teacher = (tiny(family, vocab=6, seed=seed, dtype=torch.float32) for seed in (1, 3))
    rows, epsilon = 1_000, 0.3
    # As many drafts as tokens: each token of a completion was one tested draft, or replaces one.
    rollout = speculative(
        student,
        teacher,
        *(part.repeat_interleave(rows, 0) for part in left_padded(SECOND)),
        epsilon=epsilon,
        max_new_tokens=4,
        pad_token_id=PAD,
        alignment=Alignment(6, (2,), (2,)),
        draft_length=4,
        generator=torch.Generator().manual_seed(5),
    )
    assert rollout.speculation is not None
    lengths, tokens = rollout.lengths.tolist(), rollout.tokens.tolist()
    visits = Counter(tuple(row[:t]) for row, length in zip(tokens, lengths, strict=True) for t in range(length))
    mean, variance = 0.0, 0.0
    for length in range(4):  # by forwards of all prefixes of one length, without a cache
        prefixes = [prefix for prefix in visits if len(prefix) == length]
        ids = torch.tensor([[*SECOND, *prefix] for prefix in prefixes])
        with torch.no_grad():
            a, b = (model(ids, use_cache=False).logits[:, -1] for model in (student, teacher))
        overlap = torch.minimum(reference.blend(a, b, epsilon).log_probs.exp(), a.softmax(-1)).sum(-1)
        count = torch.tensor([visits[prefix] for prefix in prefixes])
        mean += float((count * overlap).sum())
        variance += float((count * overlap * (1 - overlap)).sum())
    assert rollout.speculation.drafted == sum(lengths) == visits.total()
    assert 0.5 * rollout.speculation.drafted < mean < 0.95 * rollout.speculation.drafted
    assert abs(rollout.speculation.accepted - mean) < 4 * variance**0.5


@pytest.fixture
def mutated(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replaces the decoder's `verify` by one with a planted fault."""

    def plant(fault: str) -> None:
        def verify(student: Tensor, teacher: Tensor, drafts: Tensor, offsets: Tensor, *args: Any, **kwargs: Any) -> Any:
            if fault == "the same uniform accepts and draws":
                kwargs["draw_uniform"] = kwargs["accept_uniform"]
            verdict: Verification = trbext.verify(student, teacher, drafts, offsets, *args, **kwargs)
            if fault == "a rejected draft stands":  # one token too many is accepted
                instead = drafts
            elif fault == "the replacement is drawn from mu":
                budget = args[0].repeat_interleave(kwargs["width"])
                of_student = student[kwargs["student_rows"]]
                instead = trbext.sample(of_student, teacher, budget, uniform=kwargs["draw_uniform"]).token
            else:
                return verdict
            place = torch.arange(kwargs["width"])
            replaced = (place >= verdict.accepted[:, None]) & (place < verdict.emitted[:, None])
            return verdict._replace(tokens=torch.where(replaced, instead.view(verdict.tokens.shape), verdict.tokens))

        monkeypatch.setattr(loop, "verify", verify)

    return plant


SCHEME: dict[str, Any] = {"epsilon": 0.3, "vocab": 5, "length": 3, "rollouts": 50_000}


def test_the_scheme_in_which_faults_are_planted_follows_the_law() -> None:
    assert holm(list(p_values_of_batches(3, 25_000, **SCHEME))) > 0.01


@pytest.mark.parametrize(
    "fault",
    ["a rejected draft stands", "the replacement is drawn from mu", "the same uniform accepts and draws"],
)
def test_a_planted_fault_of_the_scheme_is_seen(fault: str, mutated: Callable[[str], None]) -> None:
    mutated(fault)
    assert holm(list(p_values_of_batches(3, 25_000, **SCHEME))) < 1e-6
