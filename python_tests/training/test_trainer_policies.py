"""Tests the policies that write the prefixes of TRBTrainer: the KL budget, other policies, and the losses of each."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.models.tiny_models import END_OF_TURN, prompts, tiny_llama
from python_tests.training.trainer_cases import MINE, decoding_calls, make_trainer, steps, weights, without_timings
from trbext.rollout import Rollout
from trbext.rollout.policies import FixedBeta

# ---- The policies that write the prefixes ----


def test_the_budget_anneals_and_then_the_teacher_decodes_no_more(
    tmp_path: Path, rollouts: list[tuple[float, Rollout]]
) -> None:
    teacher = tiny_llama(1)
    calls, seen = decoding_calls(teacher), []
    trainer = make_trainer(tmp_path, None, teacher, max_steps=5, trb_epsilon=0.3, trb_warmup_steps=3)
    generate = trainer._generate_single_turn
    trainer._generate_single_turn = lambda *args: (generate(*args), seen.append(len(calls)))[0]
    trainer.train()
    expected = [0.3, 0.3 * 2 / 3, 0.3 / 3, 0.0, 0.0]
    assert [epsilon for epsilon, _ in rollouts] == pytest.approx(expected, abs=1e-12)
    assert [log["trb/epsilon"] for log in steps(trainer)] == [epsilon for epsilon, _ in rollouts]
    assert 0 < seen[0] < seen[1] < seen[2] == seen[3] == seen[4] == len(calls)
    assert all(rollout.teacher_log_prob is None for epsilon, rollout in rollouts if epsilon == 0)


def test_evaluation_is_the_pure_students_even_during_the_warmup(
    tmp_path: Path, rollouts: list[tuple[float, Rollout]]
) -> None:
    teacher = tiny_llama(1)
    calls = decoding_calls(teacher)
    trainer = make_trainer(tmp_path, None, teacher, held_out=prompts(8), eval_verifier="numeric")
    calls.clear()  # of the start-up check
    assert trainer.epsilon == 0.1
    metrics = trainer.evaluate()
    assert calls == []
    assert len(rollouts) == 2  # batches of 4; pass@1 decodes on its own
    assert all(epsilon == 0 for epsilon, _ in rollouts)
    assert metrics["eval_pass@1"] == 0.0
    assert not [name for name in metrics if "epsilon" in name]


def test_without_a_budget_trb_is_vanilla_on_policy_distillation(tmp_path: Path) -> None:
    runs = []
    for fields in ({"rollout_policy": "student"}, {"trb_epsilon": 0.0}, {"trb_warmup_steps": 0}):
        trainer = make_trainer(tmp_path, **fields)
        trainer.train()
        runs.append((weights(trainer), without_timings(steps(trainer))))
    for run_weights, logs in runs[1:]:
        assert logs == runs[0][1]
        assert all(torch.equal(weight, runs[0][0][name]) for name, weight in run_weights.items())


def test_altered_sampling_of_the_student_is_left_to_trl(tmp_path: Path, rollouts: list[tuple[float, Rollout]]) -> None:
    trainer = make_trainer(tmp_path, rollout_policy="student", top_k=1, max_steps=1)
    student = copy.deepcopy(trainer.model)
    seen = []
    generate = trainer._generate_single_turn
    trainer._generate_single_turn = lambda prompt_ids, *rest: (
        seen.append((prompt_ids, generate(prompt_ids, *rest))) or seen[-1][1]
    )
    trainer.train()
    assert rollouts == []
    ((prompt_ids, completion_ids),) = seen
    for prompt, completion in zip(prompt_ids, completion_ids, strict=True):
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            most_probable = student(ids).logits[0].argmax(-1)
        assert completion == most_probable[len(prompt) - 1 : -1].tolist()
    assert steps(trainer)[0]["trb/beta_mean"] == 0
    assert steps(trainer)[0]["trb/tokens_per_second"] > 0


def test_rollouts_do_not_change_the_global_random_state_and_the_training_flags(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.model.train()
    trainer.model.model.norm.eval()
    before = torch.get_rng_state()
    trainer._generate_single_turn([[5, 6], [7]], None, {})
    assert torch.equal(torch.get_rng_state(), before)
    assert trainer.model.training
    assert not trainer.model.model.norm.training


def test_random_numbers_differ_between_seeds_steps_processes_streams_and_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path)

    def draw(*position: int) -> float:
        return torch.rand((), generator=trainer._generator(*position)).item()

    draws = [draw(0, 0, 0), draw(1, 0, 0), draw(0, 1, 0), draw(0, 0, 1)]
    assert draw(0, 0, 0) == draws[0]
    trainer.state.global_step = 1
    draws.append(draw(0, 0, 0))
    trainer.args.seed = 43
    draws.append(draw(0, 0, 0))
    monkeypatch.setattr(type(trainer.accelerator), "process_index", 1)
    draws.append(draw(0, 0, 0))
    assert len(set(draws)) == 7


# ---- Other policies and losses ----

POLICIES: dict[str, dict[str, Any]] = {
    "fixed": {"trb_epsilon": 0.3},
    "fixed_beta": {"fixed_beta": 0.4},
    "skd": {"skd_top_k": 3, "skd_teacher_temperature": 0.6},
    "arithmetic": {"arithmetic_alpha": 0.3},
    "temperature": {"temperature_start": 0.7, "temperature_warmup_steps": 2},
    "sft": {"sft_steps": 2},
    "teacher": {},
    "gkd": {"gkd_coin": "sequence"},
    "relay": {"relay_words": "", "relay_boundary": "", "relay_top_k": 3, "relay_leg_length": 1},
    "switching": {"switching_turn_tokens": 2, "switching_drift_threshold": 0.0},
    MINE: {"rollout_policy_kwargs": {"share": 0.5}},
}


@pytest.mark.parametrize("estimator", ["full", "sampled"])
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_trains_and_logs_what_it_has(
    tmp_path: Path, name: str, estimator: str, drawn: list[Rollout]
) -> None:
    teacher = tiny_llama(1, hidden=32, eos=END_OF_TURN)  # other EOS ids, so every policy blends merged logits
    calls, seen = decoding_calls(teacher), []
    trainer = make_trainer(
        tmp_path, None, teacher, rollout_policy=name, max_steps=4, loss_estimator=estimator, **POLICIES[name]
    )
    calls.clear()  # of the start-up check
    generate = trainer._generate_single_turn
    trainer._generate_single_turn = lambda *args: (generate(*args), seen.append(len(calls)))[0]
    trainer.train()
    asked = [after > before for before, after in zip([0, *seen], seen, strict=False)]
    assert asked == {"temperature": [False] * 4, "sft": [True, True, False, False]}.get(name, [True] * 4)
    assert not any((rollout.tokens[rollout.mask] == END_OF_TURN).any() for rollout in drawn)
    for log, rollout, used in zip(steps(trainer), drawn, asked, strict=True):
        assert all(math.isfinite(log[key]) for key in ("loss", "grad_norm", "trb/reverse_kl", "trb/teacher_log_prob"))
        assert log["trb/kl"] == pytest.approx(rollout.kl[rollout.mask].mean().item(), rel=1e-5, abs=1e-7)
        assert (rollout.teacher_log_prob is not None) == used
        assert log.get("trb/beta_mean") == (
            None
            if rollout.beta[rollout.mask].isnan().any()
            else pytest.approx(rollout.beta[rollout.mask].mean().item())
        )
        assert log.get("trb/epsilon") == {"fixed": 0.3, "sft": None if used else 0.0}.get(name)


@pytest.mark.parametrize("name", ["skd", "gkd", "temperature", "sft", "relay", "switching", MINE])
def test_a_resumed_run_of_any_policy_repeats_the_uninterrupted_run_bitwise(tmp_path: Path, name: str) -> None:
    fields: dict[str, Any] = {
        **POLICIES[name],
        **({"gkd_coin": "batch"} if name == "gkd" else {}),
        "rollout_policy": name,
        "loss_estimator": "sampled",
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    straight = make_trainer(tmp_path / "straight", **fields)
    straight.train()
    resumed = make_trainer(tmp_path / "resumed", **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-1"))
    assert without_timings(resumed.state.log_history)[:-1] == without_timings(straight.state.log_history)[:-1]
    assert all(torch.equal(weights(resumed)[key], value) for key, value in weights(straight).items())


def test_sft_warmup_is_supervised_on_the_teachers_responses_to_the_first_prompts(
    tmp_path: Path, drawn: list[Rollout]
) -> None:
    supervised, plain = (
        make_trainer(tmp_path, max_steps=3, seed=1, **fields)
        for fields in ({"rollout_policy": "sft", "sft_steps": 2}, {"rollout_policy": "student"})
    )
    asked: list[list[list[str]]] = []
    for trainer in (supervised, plain):
        asked.append([])
        generate = trainer._generate
        trainer._generate = lambda texts, generate=generate: (asked[-1].append(texts), generate(texts))[1]
        trainer.train()
    assert asked[0] == asked[1]
    for log, rollout in zip(steps(supervised), drawn, strict=False):
        if rollout.teacher_log_prob is not None:
            surprise = -rollout.student_log_prob[rollout.mask].mean().item()
            assert log["loss"] == pytest.approx(surprise, rel=1e-5)
            assert (rollout.beta[rollout.mask] == 1).all()
        else:
            assert log["loss"] == pytest.approx(log["trb/reverse_kl"], rel=1e-5)
    assert [rollout.teacher_log_prob is not None for rollout in drawn[:3]] == [True, True, False]


def test_sampled_loss_is_the_weighted_log_ratio_of_what_was_drawn(tmp_path: Path, drawn: list[Rollout]) -> None:
    for fields in ({"trb_epsilon": 0.5}, {"rollout_policy": "skd", "skd_top_k": 3}, {"rollout_policy": "student"}):
        drawn.clear()
        trainer = make_trainer(
            tmp_path,
            loss_estimator="sampled",
            gradient_accumulation_steps=2,
            pad_to_multiple_of=16,
            max_steps=1,
            **fields,
        )
        trainer.train()
        (rollout,), (log,) = drawn, steps(trainer)
        mask = rollout.mask
        if rollout.teacher_log_prob is None:
            weight, mean = torch.ones(()), log["trb/teacher_log_prob"]
            expected = rollout.student_log_prob[mask].mean().item() - mean
        else:
            weight = (rollout.student_log_prob - rollout.log_prob)[mask].exp()
            assert weight.std() > 0.01
            expected = (weight * (rollout.student_log_prob - rollout.teacher_log_prob)[mask]).mean().item()
        assert log["loss"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert log["trb/reverse_kl"] > 0


def test_veto_changes_the_loss_until_its_exponent_is_zero_and_never_the_evaluation(tmp_path: Path) -> None:
    logs = {}
    for start in (0.0, 0.6):
        trainer = make_trainer(
            tmp_path, rollout_policy="student", veto_start=start, veto_steps=2, max_steps=3, held_out=prompts(4)
        )
        first = trainer.evaluate()["eval_loss"]
        trainer.train()
        logs[start] = (first, steps(trainer))
    assert logs[0.0][0] == logs[0.6][0]
    assert logs[0.0][1][0]["trb/reverse_kl"] == pytest.approx(logs[0.6][1][0]["trb/reverse_kl"], rel=1e-5)
    assert all(log["loss"] != pytest.approx(log["trb/reverse_kl"], rel=1e-3) for log in logs[0.6][1][:2])
    assert logs[0.6][1][2]["loss"] == pytest.approx(logs[0.6][1][2]["trb/reverse_kl"], rel=1e-5)


def test_offline_distillation_takes_the_forward_kl_too(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, rollout_policy="teacher", beta=0.0, max_steps=10)
    trainer.train()
    losses = [log["loss"] for log in steps(trainer)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_a_policy_may_be_handed_over_as_an_object(tmp_path: Path, drawn: list[Rollout]) -> None:
    trainer = make_trainer(tmp_path, policy=FixedBeta(0.25), max_steps=1)
    trainer.train()
    assert (drawn[0].beta[drawn[0].mask] == 0.25).all()
    assert trainer.epsilon is None
    assert "trb/epsilon" not in steps(trainer)[0]
    with pytest.raises(ValueError, match=r"top_p=0\.9 cannot be combined with a policy"):
        make_trainer(tmp_path, policy=FixedBeta(0.25), rollout_policy="student", top_p=0.9)
