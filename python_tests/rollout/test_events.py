"""Tests the labels of tokens: their joint law with the tokens, by enumeration, and that they change no token."""

from __future__ import annotations

import importlib
import io
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.rollout.rollout_cases import (
    PAD,
    PROMPTS,
    assert_same,
    left_padded,
    p_value_of_counts,
    tiny,
)
from trbext import reference
from trbext.rollout import Rollout, lockstep, speculative
from trbext.rollout.events import accepted_drafts, event_uniforms, stream_of
from trbext.vocab import Alignment

ALIGNMENT = Alignment(5, (2,), (4, 2))  # the teacher stops by 4 too
EPSILON, LENGTH, PROMPT = 0.4, 3, [3, 4]
lockstep_loop = importlib.import_module("trbext.rollout.lockstep")

Labeled = tuple[tuple[int, bool], ...]  # the tokens of a completion, each with its label


def models() -> tuple[Any, Any]:
    return tiny(vocab=5, seed=1, dtype=torch.float32), tiny(vocab=6, seed=3, dtype=torch.float32)


def labeled_law() -> dict[Labeled, float]:
    """Computes P(completion with its labels) by the reference: min(mu, pi_S) accepted, the rest of mu replaced."""
    alive, ended = {(): 1.0}, {}
    for _ in range(LENGTH):
        prefixes = torch.tensor([[*PROMPT, *(token for token, _ in completion)] for completion in alive])
        with torch.no_grad():
            a, b = (ALIGNMENT.canonical(model(prefixes, use_cache=False).logits[:, -1]) for model in models())
        mu, student = reference.blend(a, b, EPSILON).log_probs.exp(), a.double().softmax(-1)
        overlap = torch.minimum(mu, student)
        children = {
            (*completion, (token, label)): probability * float(share[row, token])
            for row, (completion, probability) in enumerate(alive.items())
            for label, share in ((True, overlap), (False, mu - overlap))
            for token in range(ALIGNMENT.width)
        }
        children = {completion: p for completion, p in children.items() if p > 0}
        ended.update({completion: p for completion, p in children.items() if completion[-1][0] == 2})
        alive = {completion: p for completion, p in children.items() if completion[-1][0] != 2}
    return ended | alive


def labeled(rollout: Rollout) -> Counter[Labeled]:
    assert rollout.accepted is not None
    tokens, labels, lengths = rollout.tokens.tolist(), rollout.accepted.tolist(), rollout.lengths.tolist()
    rows = zip(tokens, labels, lengths, strict=True)
    return Counter(tuple(zip(of_row[:n], of_labels[:n], strict=True)) for of_row, of_labels, n in rows)


def roll(decode: Any, rows: int = 60_000, seed: int = 0, **kwargs: Any) -> Rollout:
    rollout: Rollout = decode(
        *models(),
        *(part.repeat_interleave(rows, 0) for part in left_padded(PROMPT)),
        epsilon=EPSILON,
        max_new_tokens=LENGTH,
        alignment=ALIGNMENT,
        pad_token_id=PAD,
        generator=torch.Generator().manual_seed(seed),
        **kwargs,
    )
    return rollout


@pytest.mark.parametrize("draft_length", [0, 1, 4])
def test_tokens_and_labels_follow_their_joint_law_however_they_are_decoded(draft_length: int) -> None:
    law = labeled_law()
    assert sum(law.values()) == pytest.approx(1, abs=1e-9)
    rollout = roll(speculative, draft_length=draft_length, seed=draft_length)
    assert (rollout.speculation is None) == (draft_length == 0)
    assert p_value_of_counts(law, labeled(rollout)) > 1e-3


@pytest.mark.parametrize("fault", ["the token's own number", "labels swapped", "the ratio upside down"])
def test_a_planted_fault_of_the_labels_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "the token's own number":
        monkeypatch.setattr(
            lockstep_loop,
            "event_uniforms",
            lambda generator, tokens, rows, device: torch.rand(
                (tokens, rows), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
            ),
        )
    else:
        monkeypatch.setattr(
            lockstep_loop,
            "accepted_drafts",
            (lambda u, behavior, student: ~accepted_drafts(u, behavior, student))
            if fault == "labels swapped"
            else (lambda u, behavior, student: accepted_drafts(u, student, behavior)),
        )
    assert p_value_of_counts(labeled_law(), labeled(roll(lockstep))) < 1e-6


def test_the_share_of_replaced_tokens_is_the_total_variation() -> None:
    a, b = (2 * torch.randn(1, 7, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    mu, student = reference.blend(a, b, 0.3).log_probs.exp()[0], a.double().softmax(-1)[0]
    points = 100_000
    uniforms = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    share = [float(accepted_drafts(uniforms, mu[x].log(), student[x].log()).double().mean()) for x in range(7)]
    overlap = torch.minimum(mu, student)
    assert share == pytest.approx((overlap / mu).tolist(), abs=2 / points)
    rejected = float((mu * (1 - torch.tensor(share, dtype=torch.float64))).sum())
    assert rejected == pytest.approx(float((mu - student).abs().sum() / 2), abs=1e-4)


def test_speculation_labels_what_it_counts() -> None:
    rollout = roll(speculative, rows=500, draft_length=LENGTH)
    assert rollout.speculation is not None
    assert rollout.accepted is not None
    # As many drafts as tokens: each token of a completion was one tested draft, or replaces one.
    assert rollout.speculation.drafted == int(rollout.mask.sum())
    assert rollout.speculation.accepted == int(rollout.accepted.sum())
    assert int(rollout.replaced.sum()) == rollout.speculation.drafted - rollout.speculation.accepted > 0
    assert not (rollout.accepted & ~rollout.mask).any()


@pytest.mark.parametrize("epsilon", [0.0, torch.zeros(6)])
def test_every_token_of_the_student_is_an_accepted_draft(epsilon: float | Tensor) -> None:
    rollout = lockstep(
        *(tiny(seed=1), tiny(seed=2), *PROMPTS),
        epsilon=epsilon,
        max_new_tokens=14,
        alignment=Alignment(11, (2,), (2,)),
        pad_token_id=PAD,
        generator=torch.Generator().manual_seed(0),
    )
    assert rollout.accepted is not None
    assert torch.equal(rollout.accepted, rollout.mask)
    assert not rollout.replaced.any()


def test_labels_take_no_number_from_the_generator_of_the_tokens() -> None:
    generator = torch.Generator().manual_seed(3)
    kwargs: dict[str, Any] = {"epsilon": 0.1, "max_new_tokens": 14, "alignment": Alignment(11, (2,), (2,))}
    lockstep(tiny(seed=1), tiny(seed=2), *PROMPTS, pad_token_id=PAD, generator=generator, **kwargs)
    expected = torch.Generator().manual_seed(3)
    torch.rand(14 * 6, dtype=torch.float64, generator=expected)  # one number per token and row
    assert torch.equal(generator.get_state(), expected.get_state())
    # The default generator is left alone likewise, and two rollouts in a row have labels of their own.
    torch.manual_seed(3)
    before = event_uniforms(None, 3, 2, torch.device("cpu"))
    assert torch.equal(before, event_uniforms(None, 3, 2, torch.device("cpu")))
    assert torch.equal(torch.rand(()), torch.rand((), generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(before, event_uniforms(None, 3, 2, torch.device("cpu")))


def test_labels_do_not_depend_on_when_rows_leave_or_on_the_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, seeds = tiny(seed=1), tiny(seed=2), range(6)

    def draw(rows: slice = slice(None)) -> Rollout:
        return lockstep(
            *(student, teacher, *(part[rows] for part in PROMPTS)),
            epsilon=0.5,
            max_new_tokens=30,
            alignment=Alignment(11, (2,), (2,)),
            pad_token_id=PAD,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[rows]],
        )

    usual = draw()
    assert usual.accepted is not None
    assert usual.replaced.any()
    for gap in (1, 1000):
        with monkeypatch.context() as patches:
            patches.setattr(lockstep_loop, "next_host_read", lambda generated, gap=gap: generated + gap)
            again = draw()
        assert_same(usual, again, tolerance=1e-5)
        assert torch.equal(usual.accepted, again.accepted)
    alone = draw(slice(2, 3))
    length = int(alone.lengths[0])
    assert torch.equal(alone.accepted[0], usual.accepted[2, :length])


def test_labels_are_saved_with_a_rollout() -> None:
    rollout = roll(speculative, rows=20, draft_length=2)
    file = io.BytesIO()
    torch.save(rollout, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert isinstance(loaded, Rollout)
    assert_same(rollout, loaded)
    assert torch.equal(rollout.accepted, loaded.accepted)
    assert rollout.speculation == loaded.speculation
    assert torch.equal(rollout.to("cpu").replaced, rollout.replaced)


def test_a_rollout_without_labels_says_so() -> None:
    zeros = torch.zeros(1, 2)
    bare = Rollout(zeros.long(), zeros.bool(), zeros, zeros, zeros, zeros, zeros, zeros[:, 0].bool())
    with pytest.raises(ValueError, match="which of its tokens are accepted drafts: accepted is None"):
        _ = bare.replaced


def test_a_stream_of_labels_is_known_by_its_seed() -> None:
    assert torch.rand((), generator=stream_of(1)) == torch.rand((), generator=stream_of(1))
    assert torch.rand((), generator=stream_of(1)) != torch.rand((), generator=stream_of(2))
