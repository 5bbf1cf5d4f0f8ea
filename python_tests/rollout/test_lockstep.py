"""Tests lockstep rollouts: what is recorded, the law of the tokens, which rows are fed, and faults.

The models are tiny random ones, mostly in float64, so that the bookkeeping can be checked far below any rounding.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

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
    p_value,
    poison,
    raising,
    sequence_law,
    tiny,
    training,
    without,
)
from trbext import reference
from trbext.rollout import Rollout, lockstep
from trbext.vocab import Alignment, align

loop = importlib.import_module("trbext.rollout.lockstep")  # the module: the package uses this name for the function


def roll(
    student: PreTrainedModel, teacher: PreTrainedModel | None, prompts=PROMPTS, *, seed: int = 0, **kwargs
) -> Rollout:
    defaults = {"epsilon": 0.1, "max_new_tokens": 14, "alignment": Alignment(11, (2,), (2,)), "pad_token_id": PAD}
    defaults["check"] = False  # these tests count forwards or break models; test_model_check.py is about the probe
    defaults["generator"] = torch.Generator().manual_seed(seed)
    return lockstep(student, teacher, *prompts, **{**defaults, **kwargs})


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_recorded_equals_a_teacher_forced_forward(family: str, temperature: float) -> None:
    student, teacher = tiny(family, seed=1), tiny(family, seed=2)
    rollout = roll(student, teacher, temperature=temperature)
    assert rollout.lengths.min() + 4 < rollout.lengths.max()
    for row in range(len(PROMPTS[0])):
        length = rollout.lengths[row]
        tokens = rollout.tokens[row, :length, None]
        a, b = (completion_logits(model, PROMPTS, rollout, row) for model in (student, teacher))
        beta = rollout.beta[row, :length]
        expected = {
            "beta": trbext.solve(a.float(), b.float(), 0.1, temperature=temperature).beta,
            "kl": reference.behavior_kl(a, b, beta, temperature),
            "log_prob": reference.behavior_log_probs(a, b, beta, temperature).gather(1, tokens)[:, 0],
            "student_log_prob": (a / temperature).log_softmax(-1).gather(1, tokens)[:, 0],
            "teacher_log_prob": (b / temperature).log_softmax(-1).gather(1, tokens)[:, 0],
        }
        for name, values in expected.items():
            assert (getattr(rollout, name)[row, :length] - values).abs().max() < 1e-5, name
        # The operator stops within 3e-4 of the budget, the reference at the last bit.
        assert (beta - reference.solve(a, b, 0.1, temperature=temperature).beta).abs().max() < 2e-4
    assert 0 < rollout.beta[rollout.mask].min() < rollout.beta.max()


def test_rows_end_at_their_first_stop_token_and_nothing_follows() -> None:
    rollout = roll(tiny(seed=1), tiny(seed=2), pad_token_id=9)
    assert_rows_end_at_their_first_stop_token(rollout)


def test_rollouts_are_cut_to_the_longest_row() -> None:
    rollout = roll(tiny(seed=1), tiny(seed=2), left_padded([7], [8, 9]), max_new_tokens=40)
    assert rollout.finished.all()
    assert rollout.tokens.shape[1] == rollout.lengths.max() < 40


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_other_rows_do_not_change_a_row(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = tiny(family, seed=1), tiny(family, seed=2)
    uniforms = torch.rand((14, 6), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prompts = [prompt[mask.bool()].tolist() for prompt, mask in zip(*PROMPTS, strict=True)]
    together = roll(student, teacher, left_padded(*prompts, width=9))
    for row, prompt in enumerate(prompts):
        monkeypatch.setattr(torch, "rand", lambda *_, row=row, **__: uniforms[:, row : row + 1])
        alone = roll(student, teacher, left_padded(prompt))
        length = int(alone.lengths[0])
        assert length == together.lengths[row]
        assert torch.equal(alone.tokens[0], together.tokens[row, :length])
        for name in ("log_prob", "student_log_prob", "teacher_log_prob", "beta", "kl"):
            assert (getattr(alone, name)[0] - getattr(together, name)[row, :length]).abs().max() < 5e-6, name


@pytest.mark.parametrize("epsilon", [0.1, torch.tensor([0.3, 0.0, math.inf, 0.02, 0.1, 0.05])])
def test_rollouts_do_not_depend_on_when_finished_rows_leave(
    epsilon: float | Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = tiny(seed=1), tiny(seed=2)
    usual = roll(student, teacher, epsilon=epsilon, max_new_tokens=30)
    for gap in (1, 3, 1000):
        monkeypatch.setattr(loop, "next_host_read", lambda generated, gap=gap: generated + gap)
        assert_same(usual, roll(student, teacher, epsilon=epsilon, max_new_tokens=30), tolerance=1e-6)


# The law of the tokens.


@pytest.mark.parametrize("epsilon", [0.02, 0.3])
def test_completions_follow_the_law_of_the_behavior_policy(epsilon: float) -> None:
    student, teacher = (tiny(vocab=vocab, seed=seed, dtype=torch.float32) for vocab, seed in ((6, 1), (7, 3)))
    alignment = Alignment(6, (2,), (4, 2))
    first, second, half = [3, 5], [1, 3, 3, 5], 12_000
    prompts = tuple(part.repeat_interleave(half, 0) for part in left_padded(first, second))
    laws = [sequence_law(student, teacher, prompt, epsilon, alignment, 3) for prompt in (first, second)]
    settings: dict[str, Any] = {"alignment": alignment, "max_new_tokens": 3}

    def p_values(**changed: Any) -> list[float]:
        rollout = roll(student, teacher, prompts, **settings, **changed)
        return [p_value(law, rollout, rows) for law, rows in zip(laws, (slice(half), slice(half, None)), strict=True)]

    assert all(math.isclose(sum(law.values()), 1, rel_tol=1e-9) for law in laws)
    assert min(p_values(epsilon=epsilon)) > 1e-4
    # The same check must detect a wrong temperature and a wrong budget.
    assert max(p_values(epsilon=epsilon, temperature=1.3)) < 1e-6
    assert min(p_values(epsilon=epsilon * 3)) < 1e-6


# Which models and rows are called.


def test_a_zero_budget_never_calls_the_teacher_and_is_the_limit_of_small_ones() -> None:
    student = tiny(seed=1)
    pure = roll(student, raising(tiny(seed=2)), epsilon=0.0)
    assert pure.teacher_log_prob is None
    assert torch.equal(pure.log_prob, pure.student_log_prob)
    assert (pure.beta == 0).all()
    assert (pure.kl == 0).all()
    without, asked = roll(student, None, epsilon=0), roll(student, tiny(seed=2), epsilon=torch.zeros(6))
    for other in (without, asked):
        assert torch.equal(pure.tokens, other.tokens)
        assert torch.equal(pure.student_log_prob, other.student_log_prob)
    assert asked.teacher_log_prob is not None


def test_an_infinite_budget_follows_the_teacher() -> None:
    rollout = roll(tiny(seed=1), tiny(seed=2), epsilon=math.inf)
    assert torch.equal(rollout.beta, rollout.mask.float())
    torch.testing.assert_close(rollout.log_prob, rollout.teacher_log_prob, atol=1e-6, rtol=0)


def test_each_row_keeps_its_own_budget() -> None:
    budgets = torch.tensor([0.3, 0.0, math.inf, 0.02, 0.1, 0.05])
    rollout = roll(tiny(seed=1), tiny(seed=2), epsilon=budgets)
    assert (rollout.kl <= budgets[:, None] * (1 + 1e-4) + 1e-7).all()
    assert (rollout.beta[1] == 0).all()
    assert (rollout.beta[2][rollout.mask[2]] == 1).all()
    for row in (0, 3, 4, 5):
        assert math.isclose(rollout.kl[row].max(), budgets[row], rel_tol=3e-4)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_finished_rows_leave_the_batch(epsilon: float, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = tiny(seed=1), tiny(seed=2)
    fed: dict[str, list[torch.Size]] = {"student": [], "teacher": []}
    for name, model in (("student", student), ("teacher", teacher)):
        model.register_forward_hook(lambda _, __, output, name=name: fed[name].append(output.logits.shape[:2]))
    for gap in (1, 4):
        for calls in fed.values():
            calls.clear()
        monkeypatch.setattr(loop, "next_host_read", lambda generated, gap=gap: generated + gap)
        lengths = roll(student, teacher, epsilon=epsilon, max_new_tokens=40).lengths
        # The token after `step` is fed to the rows that had not ended at the last read.
        running = [int((lengths > step - step % gap).sum()) for step in range(1, 40)]
        # One position of logits at every call, the prompts' included.
        assert fed["student"] == [(6, 1)] + [(count, 1) for count in running if count]
        assert fed["teacher"] == (fed["student"] if epsilon else [])


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_decoding_reads_from_the_device_rarely(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Alignment(12, (11,), (11,))
    student, teacher = (without(tiny(family, vocab=12, seed=seed), 11) for seed in (1, 2))
    counts = []
    for length in (2, 58):
        with monkeypatch.context() as patches, HostReads(patches) as reads:
            rollout = roll(student, teacher, max_new_tokens=length, alignment=endless)
        assert rollout.lengths.min() == length
        counts.append(reads.count)
    # 58 tokens take 13 more host reads than 2, of three operators each; one read per token would be 56 more.
    assert counts[1] - counts[0] == 3 * 13
    with monkeypatch.context() as patches, HostReads(patches) as reads:
        assert torch.ones(3).any()
        torch.ones(3).tolist()
    assert reads.count == 2


def test_equal_seeds_give_bitwise_equal_rollouts() -> None:
    student, teacher = tiny(seed=1, dtype=torch.float32), tiny(seed=2, dtype=torch.float32)
    assert_same(roll(student, teacher, seed=5), roll(student, teacher, seed=5))
    assert not torch.equal(roll(student, teacher, seed=5).tokens, roll(student, teacher, seed=6).tokens)


def test_the_generator_moves_on_by_one_number_per_row_and_step_whatever_the_lengths() -> None:
    generator, same = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    lockstep(
        *(tiny(seed=1), tiny(seed=2), *PROMPTS),
        **{"epsilon": 0.1, "max_new_tokens": 14, "alignment": Alignment(11, (2,), (2,)), "pad_token_id": PAD},
        generator=generator,
    )
    torch.rand((14, 6), dtype=torch.float64, generator=same)
    assert torch.equal(generator.get_state(), same.get_state())


# Vocabularies, dtypes, the state of the models.


def test_widths_and_eos_ids_may_differ() -> None:
    student, teacher = tiny(vocab=151, seed=1), tiny(vocab=160, seed=2)
    teacher.generation_config.eos_token_id = [3, 7]
    alignment = align(student, teacher)
    assert alignment == Alignment(151, (2,), (3, 7))
    prompts = tuple(part.repeat(200, 1) for part in PROMPTS)
    rollout = roll(student, teacher, prompts, epsilon=math.inf, alignment=alignment, max_new_tokens=4)
    assert rollout.tokens.max() < 151
    # Tokens 3 and 7 of the student end the row too, and are written as id 2.
    assert not torch.isin(rollout.tokens, torch.tensor([3, 7])).any()
    checked = 0
    for row in rollout.finished.nonzero()[:, 0].tolist():
        last = int(rollout.lengths[row]) - 1
        probabilities = completion_logits(teacher, prompts, rollout, row)[last, :151].softmax(-1)
        stop = float(sum(probabilities[token] for token in (2, 3, 7)).log())
        assert float(rollout.teacher_log_prob[row, last]) == pytest.approx(stop, abs=1e-5)
        assert rollout.tokens[row, last] == 2
        checked += 1
    assert checked > 20


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_bfloat16_models_decode(family: str) -> None:
    student, teacher = (tiny(family, seed=seed, dtype=torch.bfloat16) for seed in (1, 2))
    rollout = roll(student, teacher)
    assert rollout.log_prob.dtype == torch.float32
    assert (rollout.log_prob[rollout.mask] < 0).all()
    assert (rollout.kl <= 0.1 * (1 + 1e-4) + 1e-7).all()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_training_model_rolls_out_in_eval_mode_and_continues_to_train(family: str) -> None:
    student, teacher = tiny(family, seed=1), tiny(family, seed=2)
    usual = roll(student, teacher)
    with training(student) as flags:
        assert set(flags) == {True, False}
        graphs = set()
        student.register_forward_hook(lambda _, __, output: graphs.add(output.logits.requires_grad))
        assert_same(usual, roll(student, teacher))
    assert graphs == {False}
    with training(student), pytest.raises(AssertionError, match="the teacher was called"):
        roll(student, raising(teacher))


def test_a_peft_student_decodes_like_the_model_inside() -> None:
    peft = pytest.importorskip("peft")
    student, teacher = tiny(seed=1), tiny(seed=2)
    usual = roll(student, teacher)
    adapted = peft.get_peft_model(student, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert_same(usual, roll(adapted, teacher))


# Faults.


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("culprit", ["the student", "the teacher", "the student and the teacher"])
def test_logits_at_fault_name_row_token_and_model(culprit: str, value: float) -> None:
    models = {"the student": tiny(seed=1), "the teacher": tiny(seed=2)}
    clean = roll(*models.values(), max_new_tokens=40)
    row, step = int(clean.lengths.argmax()), 12
    assert (clean.lengths[:row] < 8).any()  # rows before it have left the batch by then
    prompt = int(PROMPTS[1][row].sum())
    others = PROMPTS[1].sum(1)[(clean.lengths > 8) & (torch.arange(6) != row)]
    assert prompt not in others
    for name, model in models.items():
        if name in culprit:
            calls = iter(range(100))
            poison(
                model,
                # At that step of the rollout, and when the prefix is inspected again.
                lambda inputs, calls=calls: (
                    (inputs["position_ids"][:, -1] == prompt + step - 1) & (next(calls) == step)
                    if "position_ids" in inputs
                    else inputs["input_ids"][:, 0] >= 0
                ),
                value,
            )
    with pytest.raises(RuntimeError, match=f"row {row}, token {step}: .* the logits of {culprit} hold NaN"):
        roll(*models.values(), max_new_tokens=40)


def test_a_row_at_fault_in_its_prompt_is_named() -> None:
    student, teacher = tiny(seed=1), tiny(seed=2)
    poison(teacher, lambda inputs: inputs["input_ids"][:, -1] == 8)
    with pytest.raises(RuntimeError, match=r"row 2, token 0: .* the teacher"):
        roll(student, teacher, left_padded([3, 4], [5], [8], [9]), max_new_tokens=1)


def test_logits_after_the_end_of_a_row_do_not_matter() -> None:
    student, teacher = tiny(seed=1), tiny(seed=2)
    usual = roll(student, teacher)
    poison(student, lambda inputs: inputs["input_ids"][:, -1] == 2)
    assert_same(usual, roll(student, teacher))


def test_the_longest_completion_the_positions_allow_decodes() -> None:
    student, teacher = (without(tiny(vocab=12, seed=seed), 11) for seed in (1, 2))
    rollout = roll(student, teacher, max_new_tokens=58, alignment=Alignment(12, (11,), (11,)))
    assert rollout.tokens.shape == (6, 58)
    assert not rollout.finished.any()


def test_a_row_with_a_generator_of_its_own_does_not_depend_on_its_batch() -> None:
    student = tiny(seed=1)

    def rows(order: list[int]) -> dict[int, list[int]]:
        generators = [torch.Generator().manual_seed(7 + row) for row in order]
        prompts = tuple(part[order] for part in PROMPTS)
        rollout = roll(student, None, prompts, epsilon=0.0, generator=generators)
        return {
            row: tokens[kept].tolist() for row, tokens, kept in zip(order, rollout.tokens, rollout.mask, strict=True)
        }

    every = list(range(len(PROMPTS[0])))
    whole = rows(every)
    assert rows(every[::-1]) == whole
    assert rows(every[1:2]) == {1: whole[1]}
    with pytest.raises(ValueError, match=f"generator must be one, or one per row \\({len(every)}\\), got 1"):
        roll(student, None, epsilon=0.0, generator=[torch.Generator()])
