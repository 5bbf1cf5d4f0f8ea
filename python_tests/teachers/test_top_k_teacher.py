"""Rollouts with a teacher of which the top k tokens are known follow the blend with the teacher that they imply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.rollout.rollout_cases import (
    PAD,
    completion_counts,
    left_padded,
    p_value_of_counts,
    sequence_law,
    tiny,
)
from python_tests.teachers.fake_teacher import fake_teacher
from trbext import FixedBeta, RemoteTeacher, Rollout, TopK, TopKTeacher, lockstep, reference, speculative
from trbext.vocab import Alignment

FIRST, SECOND = [3, 4], [1, 3, 3, 4]
ALIGNMENT = Alignment(6, (2,), (2,))


class TopOfModel:
    """A model in this process of which the k most probable tokens are told."""

    def __init__(self, model: Any, k: int) -> None:
        self.model, self.k, self.asked = model, k, 0
        self.known: dict[tuple[int, ...], Tensor] = {}  # logits, as most prefixes come many times

    def next_tokens(self, prefixes: Sequence[Sequence[int]], alignment: Alignment) -> TopK:
        self.asked += len(prefixes)
        for prefix in {tuple(prefix) for prefix in prefixes} - self.known.keys():
            self.known[prefix] = self.model(torch.tensor([prefix]), use_cache=False).logits[0, -1]
        top = (
            alignment.canonical(torch.stack([self.known[tuple(prefix)] for prefix in prefixes]))
            .log_softmax(-1)
            .topk(self.k)
        )
        return TopK(top.indices, top.values.float())

    def score(self, sequences: Sequence[Sequence[int]], starts: Sequence[int], alignment: Alignment) -> TopK:
        raise AssertionError("a rollout asks about drafts only")


def roll(student: Any, teacher: Any, rows: int, *, epsilon: float = 0.3, draft_length: Any = 3, **more: Any) -> Rollout:
    prompts = tuple(part.repeat_interleave(rows, 0) for part in left_padded(FIRST, SECOND))
    return speculative(
        student,
        teacher,
        *prompts,
        epsilon=epsilon,
        max_new_tokens=4,
        alignment=ALIGNMENT,
        pad_token_id=PAD,
        draft_length=draft_length,
        generator=torch.Generator().manual_seed(7),
        **more,
    )


def implied(student: Any, model: Any, k: int) -> Any:
    """Returns the teacher that has the model's k most probable tokens, and the student's law on all others."""

    def forward(prefixes: Tensor, **_: Any) -> SimpleNamespace:
        a, b = (each(prefixes, use_cache=False).logits.double().log_softmax(-1) for each in (student, model))
        listed = torch.zeros_like(b, dtype=torch.bool).scatter(-1, b.topk(k).indices, True)
        rest = (1 - b.exp().where(listed, 0).sum(-1, keepdim=True)).log()
        of_student = a.masked_fill(listed, -torch.inf)
        return SimpleNamespace(logits=b.where(listed, of_student - of_student.logsumexp(-1, keepdim=True) + rest))

    return forward


@pytest.fixture
def pair() -> tuple[Any, Any]:
    student, teacher = (tiny(vocab=6, seed=seed, dtype=torch.float32) for seed in (1, 3))
    return student, teacher


@pytest.mark.parametrize("draft_length", [0, 2, 4, "auto"])
def test_with_all_tokens_it_is_the_model(pair: tuple[Any, Any], draft_length: Any) -> None:
    student, model = pair
    teacher = TopOfModel(model, 6)
    assert isinstance(teacher, TopKTeacher)
    found, expected = roll(student, teacher, 3, draft_length=draft_length), roll(student, model, 3)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.finished, expected.finished)
    for name in ("log_prob", "student_log_prob", "teacher_log_prob", "beta", "kl"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-4, rtol=1e-4)


def test_completions_follow_the_blend_with_the_implied_teacher(pair: tuple[Any, Any]) -> None:
    student, model = pair
    rollout = roll(student, TopOfModel(model, 2), 3_000)
    p_values = []
    for row, prompt in ((0, FIRST), (3_000, SECOND)):
        law = sequence_law(student, implied(student, model, 2), prompt, 0.3, ALIGNMENT, 4)
        p_values.append(p_value_of_counts(law, completion_counts(rollout, slice(row, row + 3_000)), bins_above=10))
        of_model = sequence_law(student, model, prompt, 0.3, ALIGNMENT, 4)
        wrong = p_value_of_counts(of_model, completion_counts(rollout, slice(row, row + 3_000)), bins_above=10)
        assert wrong < 1e-6  # the test can tell them apart
    assert min(p_values) > 0.005, p_values


def test_the_budget_is_spent_at_each_token_and_what_was_told_comes_along(pair: tuple[Any, Any]) -> None:
    student, model = pair
    rollout = roll(student, TopOfModel(model, 2), 20, epsilon=0.05)
    assert rollout.teacher_top_ids is not None
    assert rollout.teacher_top_log_prob is not None
    assert rollout.teacher_top_ids.shape == (*rollout.tokens.shape, 2)
    for row in (0, 25):
        prompt = FIRST if row < 20 else SECOND
        for place in range(int(rollout.lengths[row])):
            prefix = torch.tensor([[*prompt, *rollout.tokens[row, :place].tolist()]])
            a = student(prefix, use_cache=False).logits[:, -1]
            b = implied(student, model, 2)(prefix).logits[:, -1]
            expected = reference.blend(a, b, 0.05)
            assert float(rollout.beta[row, place]) == pytest.approx(float(expected.beta), abs=1e-3)
            assert float(rollout.kl[row, place]) <= 0.05 * (1 + 1e-4)
            told = model(prefix, use_cache=False).logits[0, -1].log_softmax(-1).topk(2)
            assert torch.equal(rollout.teacher_top_ids[row, place], told.indices)
            torch.testing.assert_close(rollout.teacher_top_log_prob[row, place], told.values)
    assert (rollout.teacher_top_ids[~rollout.mask] == -1).all()


def test_nobody_is_asked_about_drafts_that_cannot_count(pair: tuple[Any, Any]) -> None:
    student, model = pair
    teacher = TopOfModel(model, 2)
    rollout = roll(student, teacher, 50, draft_length=4)
    assert rollout.speculation is not None
    assert teacher.asked <= rollout.speculation.row_passes * 4
    wrote = int(rollout.lengths.sum())
    assert wrote <= teacher.asked < 2 * wrote


@pytest.mark.parametrize("widths", [(2, 4, 1, 6), (6, 3, 1, 2)])
def test_a_teacher_may_tell_more_tokens_at_one_call_than_at_another(
    pair: tuple[Any, Any], widths: tuple[int, ...]
) -> None:
    class Varying(TopOfModel):
        def next_tokens(self, prefixes: Sequence[Sequence[int]], alignment: Alignment) -> TopK:
            self.calls = getattr(self, "calls", -1) + 1
            self.k = widths[self.calls % len(widths)]
            return super().next_tokens(prefixes, alignment)

    student, model = pair
    teacher = Varying(model, 1)
    rollout = roll(student, teacher, 5, draft_length=0)
    assert teacher.calls == 3
    assert rollout.teacher_top_ids is not None
    assert rollout.teacher_top_log_prob is not None
    told = (rollout.teacher_top_ids >= 0).sum(-1)
    assert torch.equal(told, torch.tensor(widths)[: told.shape[1]] * rollout.mask)
    assert torch.equal(told, (rollout.teacher_top_log_prob > -torch.inf).sum(-1) * rollout.mask)


def test_a_server_is_such_a_teacher(pair: tuple[Any, Any]) -> None:
    student, model = pair
    with fake_teacher(model) as server:
        found = roll(student, RemoteTeacher(server.url, top_k=2), 3)
    expected = roll(student, TopOfModel(model, 2), 3)
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.beta, expected.beta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda top: TopK(top.ids[:1], top.log_probs[:1]), r"each a tensor \[\d, k\], got torch.int64 \[1, 2\]"),
        (lambda top: TopK(*(each.repeat(2, 1) for each in top)), r"each a tensor \[\d, k\], got torch.int64 \["),
        (lambda top: TopK(*(each[:, 0] for each in top)), r"each a tensor \[\d, k\], got torch.int64 \["),
        (lambda top: tuple(each.tolist() for each in top), r"each a tensor \[\d, k\], got list, list"),
        (lambda top: top.ids, r"each a tensor \[\d, k\], got torch.int64 \["),
        (lambda top: TopK(top.ids.float(), top.log_probs), "whole ids and log_probs"),
        *(
            (
                lambda top, dtype=dtype: TopK(top.ids, top.log_probs.to(dtype)),
                rf"log_probs in float32 or float64, .* got torch.int64 \[\d, 2\], {dtype} \[\d, 2\]",
            )
            for dtype in (torch.bfloat16, torch.float16)
        ),
        (lambda top: TopK(top.ids[:, :1].expand(-1, 2), top.log_probs), r"each id once per row, got \[.*\] in row 0"),
        (lambda top: TopK(top.ids + 6, top.log_probs), r"ids in \[0, 6\), -1 for none, got"),
        (lambda top: TopK(top.ids, top.log_probs * 0), r"add up to at most 1, got 2\.0 in row 0"),
        (lambda top: TopK(top.ids, top.log_probs * torch.nan), "add up to at most 1, got nan"),
        (
            lambda top: TopK(torch.arange(6).expand(len(top.ids), -1), torch.full((len(top.ids), 6), -torch.inf)),
            r"a probability above 0 if it lists all 6 tokens, got 0\.0 in row 0",
        ),
    ],
)
def test_an_answer_that_is_no_top_k_of_the_prefixes_is_refused(
    pair: tuple[Any, Any], change: Callable[[TopK], Any], message: str
) -> None:
    class Wrong(TopOfModel):
        def next_tokens(self, prefixes: Sequence[Sequence[int]], alignment: Alignment) -> Any:
            return change(super().next_tokens(prefixes, alignment))

    student, model = pair
    with pytest.raises(ValueError, match=rf"the teacher Wrong must return .*{message}"):
        roll(student, Wrong(model, 2), 1)


def test_what_it_cannot_do_is_refused(pair: tuple[Any, Any]) -> None:
    student, model = pair
    teacher: Any = TopOfModel(model, 2)
    with pytest.raises(ValueError, match=r"gives log-probs at temperature 1 only, got temperature 0\.5"):
        roll(student, teacher, 1, temperature=0.5)
    prompts: Any = left_padded(FIRST)
    options: Any = {"max_new_tokens": 2, "alignment": ALIGNMENT, "pad_token_id": PAD}
    with pytest.raises(ValueError, match=r"has no lockstep: call trbext\.speculative"):
        lockstep(student, teacher, *prompts, epsilon=0.1, **options)
    with pytest.raises(ValueError, match="serves policies with a KL budget, got FixedBeta"):
        speculative(student, teacher, *prompts, policy=FixedBeta(0.5), **options)
    with pytest.raises(ValueError, match=r"needs a student from which tokens can be taken back: .*FalconH1"):
        speculative(tiny("falcon_h1", vocab=6), teacher, *prompts, epsilon=0.1, **options)
