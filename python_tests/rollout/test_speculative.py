"""Tests speculative rollouts: what is recorded, independence of the draft length, which rows are fed, faults, bad
input.

The law of the tokens is tested in test_speculative_law.py.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import trbext
from python_tests.rollout.host_reads import HostReads
from python_tests.rollout.rollout_cases import (
    FAMILIES,
    PAD,
    PROMPTS,
    assert_rows_end_at_their_first_stop_token,
    assert_same,
    completion_logits,
    left_padded,
    tiny,
    training,
    without,
)
from trbext import reference
from trbext.rollout import DraftLength, Rollout, lockstep, speculative
from trbext.vocab import Alignment

loop = importlib.import_module("trbext.rollout.speculative_rounds")
ROLLS_BACK = [family for family in FAMILIES if family != "falcon_h1"]
LENGTHS = [1, 2, 5, 20]


def roll(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    prompts: tuple[Tensor, Tensor] = PROMPTS,
    *,
    seed: int = 0,
    decode: Callable[..., Rollout] = speculative,
    **kwargs: Any,
) -> Rollout:
    defaults = {"epsilon": 0.1, "max_new_tokens": 14, "alignment": Alignment(11, (2,), (2,)), "pad_token_id": PAD}
    defaults["check"] = False  # these tests count forwards or break models; test_model_check.py is about the probe
    if "policy" in kwargs:
        del defaults["epsilon"]
    return decode(student, teacher, *prompts, generator=torch.Generator().manual_seed(seed), **{**defaults, **kwargs})


@pytest.mark.parametrize("draft_length", [1, 4, "auto"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ROLLS_BACK)
def test_what_is_recorded_equals_a_teacher_forced_forward(family: str, attention: str, draft_length: int | str) -> None:
    # Eager attention computes its softmax in float32: there float64's lowest number is -inf, and padding gives NaN.
    dtype = torch.float32 if attention == "eager" else torch.float64
    student, teacher = tiny(family, seed=1, dtype=dtype), tiny(family, seed=2, dtype=dtype)
    for model in (student, teacher):
        model.set_attn_implementation(attention)
    rollout = roll(student, teacher, temperature=0.7, draft_length=draft_length)
    assert rollout.speculation is not None
    assert rollout.lengths.min() < rollout.lengths.max()
    for row in range(len(PROMPTS[0])):
        length = rollout.lengths[row]
        tokens = rollout.tokens[row, :length, None]
        a, b = (completion_logits(model, PROMPTS, rollout, row) for model in (student, teacher))
        beta = rollout.beta[row, :length]
        expected = {
            "beta": trbext.solve(a.float(), b.float(), 0.1, temperature=0.7).beta,
            "kl": reference.behavior_kl(a, b, beta, 0.7),
            "log_prob": reference.behavior_log_probs(a, b, beta, 0.7).gather(1, tokens)[:, 0],
            "student_log_prob": (a / 0.7).log_softmax(-1).gather(1, tokens)[:, 0],
            "teacher_log_prob": (b / 0.7).log_softmax(-1).gather(1, tokens)[:, 0],
        }
        for name, values in expected.items():
            assert (getattr(rollout, name)[row, :length] - values).abs().max() < 1e-5, name
    assert 0 < rollout.beta[rollout.mask].min() < rollout.beta.max()


PER_ROW = torch.tensor([0.3, 0.0, math.inf, 0.02, 0.1, 0.05])


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"epsilon": PER_ROW, "temperature": 0.7},
        {"epsilon": math.inf, "max_new_tokens": 3},
        {"alignment": Alignment(9, (2, 5), (7, 2)), "max_new_tokens": 20, "pad_token_id": 9},
        {"prompts": left_padded([7])},
        {"prompts": left_padded([7, 3, 3], [9], width=8), "max_new_tokens": 1},
    ],
)
@pytest.mark.parametrize("family", ROLLS_BACK)
def test_the_rollout_does_not_depend_on_the_draft_length(family: str, case: dict[str, Any]) -> None:
    student, teacher = tiny(family, seed=1), tiny(family, seed=2)
    one = roll(student, teacher, draft_length=1, **case)
    for draft_length in (2, 3, 5, 20, 10**9, "auto"):  # no buffer grows beyond what a row may write
        assert_same(one, roll(student, teacher, draft_length=draft_length, **case), tolerance=1e-6)


def test_the_rollout_does_not_depend_on_when_finished_rows_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = tiny(seed=1), tiny(seed=2)
    usual = roll(student, teacher, epsilon=PER_ROW, max_new_tokens=30, draft_length=3)
    for gap in (1, 5, 1000):
        monkeypatch.setattr(loop, "next_host_read", lambda generated, gap=gap: generated + gap)
        changed = roll(student, teacher, epsilon=PER_ROW, max_new_tokens=30, draft_length=3)
        assert_same(usual, changed, tolerance=1e-6)


@pytest.mark.parametrize("family", ROLLS_BACK)
def test_padding_and_other_rows_do_not_change_a_row(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = tiny(family, seed=1), tiny(family, seed=2)
    uniforms = torch.rand((3, 6, 14), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prompts = [prompt[mask.bool()].tolist() for prompt, mask in zip(*PROMPTS, strict=True)]
    together = roll(student, teacher, left_padded(*prompts, width=9), draft_length=4)
    for row, prompt in enumerate(prompts):
        monkeypatch.setattr(torch, "rand", lambda *_, row=row, **__: uniforms[:, row : row + 1])
        alone = roll(student, teacher, left_padded(prompt), draft_length=4)
        length = int(alone.lengths[0])
        assert length == together.lengths[row]
        assert torch.equal(alone.tokens[0], together.tokens[row, :length])
        for name in ("log_prob", "student_log_prob", "teacher_log_prob", "beta", "kl"):
            assert (getattr(alone, name)[0] - getattr(together, name)[row, :length]).abs().max() < 5e-6, name


@pytest.mark.parametrize("draft_length", LENGTHS)
def test_rows_end_at_their_first_stop_token_and_nothing_follows(draft_length: int) -> None:
    rollout = roll(tiny(seed=1), tiny(seed=2), pad_token_id=9, draft_length=draft_length)
    assert_rows_end_at_their_first_stop_token(rollout)


def test_each_row_keeps_its_own_budget() -> None:
    rollout = roll(tiny(seed=1), tiny(seed=2), epsilon=PER_ROW, draft_length=3)
    assert (rollout.kl <= PER_ROW[:, None] * (1 + 1e-4) + 1e-7).all()
    assert (rollout.beta[1] == 0).all()
    assert (rollout.beta[2][rollout.mask[2]] == 1).all()


def test_all_drafts_are_accepted_by_an_identical_teacher_in_few_passes() -> None:
    student, endless = without(tiny(seed=1, vocab=12), 11), Alignment(12, (11,), (11,))
    rollout = roll(student, student, alignment=endless, max_new_tokens=40, draft_length=8)
    assert rollout.speculation is not None
    assert rollout.speculation.acceptance == 1
    assert rollout.speculation.rounds == 5
    assert rollout.speculation.row_passes == 5 * len(PROMPTS[0])


# What is computed.


def test_finished_rows_leave_the_batch_and_the_teacher_sees_one_token_more_than_drafts() -> None:
    student, teacher = tiny(seed=1), tiny(seed=2)
    fed: dict[str, list[tuple[int, ...]]] = {"student": [], "teacher": []}
    roll(student, teacher)  # the models are tried once, which is not counted
    for name, model in (("student", student), ("teacher", teacher)):
        model.register_forward_hook(
            lambda _, __, kwargs, ___, name=name: fed[name].append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
        )
    rollout = roll(student, teacher, max_new_tokens=40, draft_length=4)
    width = PROMPTS[0].shape[1]
    assert fed["student"][0] == (6, width)  # the prompts, by a pass from which both models draw at once
    assert fed["teacher"][0] == (6, width + 4)
    passes = fed["teacher"][1:]
    assert fed["student"][1:] == [(6, 1)] * 4 + [(rows, 1) for rows, tokens in passes for _ in range(tokens)]
    assert {tokens for _, tokens in passes[:-2]} == {5}  # the last ones end with the longest row
    rows = [count for count, _ in fed["teacher"]]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < rows[0]
    assert rollout.speculation is not None
    assert rollout.speculation.row_passes == sum(rows)
    assert rollout.speculation.rounds == len(rows)


def test_decoding_reads_from_the_device_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Alignment(12, (11,), (11,))
    student, teacher = (without(tiny(vocab=12, seed=seed), 11) for seed in (1, 2))
    roll(student, teacher, alignment=endless)
    counts = []
    for length in (4, 56):
        with monkeypatch.context() as patches, HostReads(patches) as reads:
            rollout = roll(student, teacher, max_new_tokens=length, alignment=endless, draft_length=4, epsilon=1e-4)
        assert rollout.lengths.min() == length
        counts.append(reads.count)
    # Nearly all drafts are accepted: 13 more rounds, at most one read each, of a fixed number of operators.
    assert counts[1] - counts[0] <= 13 * 6


@pytest.mark.parametrize("decode", [lockstep, partial(speculative, draft_length=5)])
def test_teacher_states_are_those_of_a_full_forward(decode: Callable[..., Rollout]) -> None:
    student, teacher = tiny(seed=1), tiny(seed=2)
    rollout = roll(student, teacher, decode=decode, teacher_states_limit=1e6)
    assert rollout.teacher_states is not None
    assert rollout.teacher_states.shape == (*rollout.tokens.shape, 16)
    for row in range(6):
        prompt = PROMPTS[0][row][PROMPTS[1][row].bool()]
        length = int(rollout.lengths[row])
        sequence = torch.cat([prompt, rollout.tokens[row, :length]])[None]
        with torch.no_grad():
            states = teacher.base_model(sequence, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
        assert (rollout.teacher_states[row, :length] - states).abs().max() < 1e-6
    assert roll(student, teacher, decode=decode).teacher_states is None
    # 6 rows x 14 tokens, and one for drafts past the limit, x 16 numbers of 8 bytes
    enough = 6 * (14 + (decode is not lockstep)) * 16 * 8
    assert roll(student, teacher, decode=decode, teacher_states_limit=enough).teacher_states is not None
    assert roll(student, teacher, decode=decode, teacher_states_limit=enough - 1).teacher_states is None
    assert not teacher.base_model._forward_hooks


# Ways to call it.


@pytest.mark.parametrize("draft_length", [-1, 1.5, True, "fast", None])
def test_a_draft_length_that_is_none_is_refused(draft_length: Any) -> None:
    with pytest.raises(ValueError, match="draft_length must be 'auto', 0 for lockstep, or a number of drafts k >= 1"):
        roll(tiny(seed=1), tiny(seed=2), draft_length=draft_length)


def test_a_draft_length_may_be_a_number_of_numpy() -> None:
    found, expected = (roll(tiny(seed=1), tiny(seed=2), draft_length=length) for length in (np.int64(2), 2))
    assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.parametrize("culprit", ["the student", "the teacher"])
def test_logits_at_fault_name_row_token_and_model(culprit: str) -> None:
    models = {"the student": tiny(seed=1), "the teacher": tiny(seed=2)}
    clean = roll(*models.values(), draft_length=3)
    row = int(clean.lengths.argmax())
    step = 6
    # A row that is fed this token at its position has no logits there: the row's own prefix, in any batch and any
    # block.
    position, last = int(PROMPTS[1][row].sum()) + step - 1, clean.tokens[row, step - 1]
    assert clean.lengths[row] > step

    def poison(_: Any, __: Any, inputs: dict[str, Tensor], output: Any) -> None:
        ids = inputs["input_ids"]
        positions = inputs.get("position_ids", torch.arange(ids.shape[1])[None])
        at = ((ids == last) & (positions == position)).expand(len(ids), -1)
        output.logits[at[:, -output.logits.shape[1] :]] = math.nan

    models[culprit].register_forward_hook(poison, with_kwargs=True)
    with pytest.raises(
        RuntimeError, match=rf"row {row}, token {step}: no token can be drawn, the logits of {culprit} hold NaN"
    ):
        roll(*models.values(), draft_length=3)


def test_a_training_model_rolls_out_in_eval_mode_and_continues_to_train() -> None:
    student, teacher = tiny("gpt2", seed=1), tiny("gpt2", seed=2)
    expected = roll(student, teacher)
    with training(student), training(teacher):
        rollout = roll(student, teacher)
    assert_same(expected, rollout, tolerance=1e-6)


def test_the_buffers_grow_with_long_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    from trbext.models.rollback_model import RollbackModel

    student, teacher = (without(tiny(vocab=12, seed=seed), 11) for seed in (1, 2))
    settings: dict[str, Any] = {"alignment": Alignment(12, (11,), (11,)), "max_new_tokens": 50, "draft_length": 3}
    expected = roll(student, teacher, **settings)
    begin = RollbackModel.__init__
    monkeypatch.setattr(RollbackModel, "__init__", lambda self, model, first, capacity: begin(self, model, first, 1))
    assert_same(expected, roll(student, teacher, **settings))


def test_one_draft_length_serves_rollouts_until_it_is_frozen_and_then_repeats_itself() -> None:
    student, teacher = tiny(seed=1), tiny(seed=2)
    kept = DraftLength()
    first = roll(student, teacher, draft_length=kept)
    kept.freeze()
    state = json.loads(json.dumps(kept.state()))
    assert state["teacher"]
    again = DraftLength()
    again.load_state(state)
    one, two = roll(student, teacher, draft_length=kept), roll(student, teacher, draft_length=again)
    assert one.speculation == two.speculation
    assert_same(one, two)
    assert_same(first, one, tolerance=1e-6)
    assert kept.state() == state


def test_drafts_stay_right_past_a_window_wider_than_what_a_round_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "mistral", {"sliding_window": 12})
    student, teacher = tiny("mistral", seed=1), tiny("mistral", seed=2)
    rollout = roll(student, teacher, max_new_tokens=30, draft_length=3)
    assert rollout.speculation is not None
    assert rollout.lengths.max() > 12
    for row in range(len(PROMPTS[0])):
        length = rollout.lengths[row]
        expected = completion_logits(student, PROMPTS, rollout, row).log_softmax(-1)
        expected = expected.gather(1, rollout.tokens[row, :length, None])[:, 0]
        assert (rollout.student_log_prob[row, :length] - expected).abs().max() < 1e-5


def test_a_window_other_than_the_config_says_is_found_out() -> None:
    student, teacher = tiny("mistral", seed=1), tiny("mistral", seed=2)
    plain = teacher.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        window, teacher.config.sliding_window = teacher.config.sliding_window, 3
        try:
            return plain(*args, **kwargs)
        finally:
            teacher.config.sliding_window = window

    teacher.model.forward = forward
    with pytest.warns(UserWarning, match="MistralForCausalLM gives other logits after a token was taken back"):
        roll(student, teacher, draft_length=4)
