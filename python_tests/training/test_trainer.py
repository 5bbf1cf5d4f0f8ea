"""TRBTrainer on one process, with models of a few thousand weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from peft import LoraConfig
from torch import nn
from transformers import LlamaForCausalLM
from trl import DistillationConfig

import trbext.training.trainer
from python_tests.models.tiny_models import END_OF_TURN, EOS, VOCABULARY, prompts, saved, tiny_llama, tiny_tokenizer
from trbext.rollout import Rollout, speculative
from trbext.rollout.policies import FixedBeta
from trbext.training.config import TRBConfig
from trbext.training.trainer import TRBTrainer
from trbext.vocab import VocabularyMismatch

MINE = "python_tests.rollout.test_policies:TopTokenOfTheTeacher"  # a policy of a user's own module
METRICS = {
    "trb/epsilon",
    "trb/beta_mean",
    "trb/beta_p10",
    "trb/beta_p90",
    "trb/beta_one_fraction",
    "trb/kl",
    "trb/kl_max",
    "trb/kl_budget_used",
    "trb/teacher_log_prob",
    "trb/teacher_entropy",
    "trb/reverse_kl",
    "trb/tokens_per_second",
}
TIMINGS = ("per_second", "runtime", "step_time", "compute/seconds")


def make_trainer(
    folder: Path,
    student: LlamaForCausalLM | str | None = None,
    teacher: LlamaForCausalLM | str | None = None,
    *,
    rows: int | IterableDataset = 32,
    held_out: Any = None,
    verifier: Any = None,
    peft_config: Any = None,
    policy: Any = None,
    **fields: Any,
) -> TRBTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_completion_length": 8,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "trb_epsilon": 0.1,
        "trb_warmup_steps": 3,
        "draft_length": 3,  # "auto" goes by the clock: two runs from the start may round differently
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return TRBTrainer(
        student if student is not None else tiny_llama(0),
        teacher if teacher is not None else tiny_llama(1, hidden=32),
        TRBConfig(**settings | fields),
        train_dataset=prompts(rows) if isinstance(rows, int) else rows,
        eval_dataset=held_out,
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
        verifier=verifier,
        policy=policy,
    )


def steps(trainer: TRBTrainer) -> list[dict[str, float]]:
    """What was logged at each optimizer step."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def without_timings(logs: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in log.items() if not name.endswith(TIMINGS)} for log in logs]


def weights(trainer: TRBTrainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def decoding_calls(model: LlamaForCausalLM) -> list[int]:
    """Grows by one for each forward pass that decodes; the loss reads the lm_head's weight without calling it."""
    calls: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, Rollout]]:
    """The budget and the rollout of every call of the decoder."""
    seen: list[tuple[float, Rollout]] = []

    def recording(*args: Any, **kwargs: Any) -> Rollout:
        rollout = speculative(*args, **kwargs)
        seen.append((kwargs["policy"].epsilon(kwargs["optimizer_step"]), rollout))
        return rollout

    monkeypatch.setattr(trbext.training.trainer, "speculative", recording)
    return seen


# ---- What is trained ----


def test_the_reverse_kl_falls(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=20, trb_warmup_steps=10)
    trainer.train()
    losses = [log["trb/reverse_kl"] for log in steps(trainer)]
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize(("student_width", "teacher_width"), [(64, 72), (72, 64)])
def test_models_of_different_logit_width_train(
    tmp_path: Path, student_width: int, teacher_width: int, rollouts: list[tuple[float, Rollout]]
) -> None:
    trainer = make_trainer(tmp_path, tiny_llama(0, vocab_size=student_width), tiny_llama(1, vocab_size=teacher_width))
    before = weights(trainer)
    trainer.train()
    assert trainer.alignment.width == 64
    assert all(math.isfinite(log["loss"]) and log["loss"] > 0 for log in steps(trainer))
    assert all((rollout.tokens < 64).all() for _, rollout in rollouts)
    after = weights(trainer)
    assert not torch.equal(after["lm_head.weight"][:64], before["lm_head.weight"][:64])
    assert torch.equal(after["lm_head.weight"][64:], before["lm_head.weight"][64:])  # padding has no gradient


@pytest.mark.parametrize("teacher_eos", [END_OF_TURN, [END_OF_TURN, EOS]])
def test_models_with_different_eos_ids_train(
    tmp_path: Path, teacher_eos: int | list[int], rollouts: list[tuple[float, Rollout]]
) -> None:
    teacher = tiny_llama(1, eos=teacher_eos)
    with torch.no_grad():  # a teacher that stops soon, so that some of its stop mass is drawn
        teacher.lm_head.weight[END_OF_TURN] = 3 * teacher.lm_head.weight.mean(0)
    trainer = make_trainer(tmp_path, None, teacher, trb_epsilon=1.0, max_steps=4, trb_warmup_steps=9, temperature=1.5)
    trainer.train()
    drawn = torch.cat([rollout.tokens[rollout.mask] for _, rollout in rollouts])
    assert (drawn == EOS).any()
    assert not (drawn == END_OF_TURN).any()  # the teacher's stop is emitted as the student's
    assert all(math.isfinite(log["loss"]) and math.isfinite(log["grad_norm"]) for log in steps(trainer))
    assert all(weight.isfinite().all() for weight in weights(trainer).values())


def test_a_student_equal_to_its_teacher_has_no_loss_and_beta_one(tmp_path: Path) -> None:
    teacher = tiny_llama(3)
    trainer = make_trainer(tmp_path, copy.deepcopy(teacher), teacher, max_steps=1)
    trainer.train()
    (log,) = steps(trainer)
    assert abs(log["loss"]) < 1e-6
    assert log["trb/beta_mean"] == log["trb/beta_p10"] == log["trb/beta_one_fraction"] == 1.0
    assert log["trb/kl_max"] < 1e-6
    assert log["trb/teacher_entropy"] == pytest.approx(log["entropy"], abs=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_our_loss_trains_as_the_fused_loss_of_trl_does(tmp_path: Path, accumulation: int) -> None:
    trained = []
    for fused in (True, False):
        fields: dict[str, Any] = {"gradient_accumulation_steps": accumulation, "draft_length": 2}
        trainer = make_trainer(tmp_path, teacher=tiny_llama(1, vocab_size=72), **fields)
        assert trainer._fused_loss
        trainer._fused_loss = fused
        trainer.train()
        trained.append((weights(trainer), without_timings(steps(trainer))))
    for name, weight in trained[0][0].items():
        torch.testing.assert_close(weight, trained[1][0][name], rtol=1e-4, atol=1e-5, msg=name)
    for fused_log, our_log in zip(trained[0][1], trained[1][1], strict=True):
        assert our_log == pytest.approx(fused_log, rel=1e-4, abs=1e-6)


def test_loss_top_k_bounds_the_full_loss_from_below(tmp_path: Path) -> None:
    logs = {}
    for top_k in (4, 63, None):
        trainer = make_trainer(tmp_path, loss_top_k=top_k, max_steps=1)
        trainer.train()
        logs[top_k] = steps(trainer)[0]
    assert 0 < logs[4]["loss"] < 0.9 * logs[None]["loss"]
    assert logs[63]["loss"] == pytest.approx(logs[None]["loss"], rel=1e-5)
    assert logs[4]["trb/teacher_log_prob"] == pytest.approx(logs[None]["trb/teacher_log_prob"], rel=1e-6)


def test_a_lora_student_trains_only_its_adapter(tmp_path: Path) -> None:
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    trainer = make_trainer(tmp_path, peft_config=adapter, gradient_checkpointing=True)
    before = weights(trainer)
    trainer.train()
    changed = {name for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert steps(trainer)[0]["trb/kl_max"] <= 0.1 * (1 + 1e-4) + 1e-7


def test_a_bf16_run_computes_its_loss_in_bf16(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bf16=True, max_steps=1)
    dtypes: set[tuple[torch.dtype, int]] = set()
    for model in (trainer.model, trainer.teacher_model):
        mlp = model.model.layers[0].mlp
        mlp.register_forward_hook(lambda _, __, output: dtypes.add((output.dtype, output.shape[1])))
    trainer.train()
    assert max(length for _, length in dtypes) > 8  # a pass over prompt and completion: the loss's
    assert {dtype for dtype, _ in dtypes} == {torch.bfloat16}
    assert math.isfinite(steps(trainer)[0]["loss"])


# ---- Who writes the prefixes ----


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


def test_rollouts_leave_the_global_random_state_and_the_training_flags_alone(tmp_path: Path) -> None:
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
    MINE: {"rollout_policy_kwargs": {"share": 0.5}},
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Rollout]:
    """The rollout of every call of the decoder."""
    seen: list[Rollout] = []

    def recording(*args: Any, **kwargs: Any) -> Rollout:
        seen.append(speculative(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(trbext.training.trainer, "speculative", recording)
    return seen


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


@pytest.mark.parametrize("name", ["skd", "gkd", "temperature", "sft", MINE])
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


# ---- Several rollouts of a prompt, and a few rows at a time ----


def test_rollouts_of_one_prompt_share_an_optimizer_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, rows=8, rollouts_per_prompt=4, gradient_accumulation_steps=2, max_steps=4)
    batches: list[list[str]] = []
    generate = trainer._generate
    trainer._generate = lambda texts: (batches.append(texts), generate(texts))[1]
    trainer.train()
    assert [len(batch) for batch in batches] == [8] * 4
    assert all(batch.count(text) == 4 for batch in batches for text in batch)
    assert sorted({text for batch in batches for text in batch}) == sorted(prompts(8)["prompt"])  # 2 a step: one epoch
    with pytest.raises(ValueError, match="an optimizer step takes 4 rollouts, no multiple of rollouts_per_prompt 3"):
        make_trainer(tmp_path, rollouts_per_prompt=3).train()


def test_rollouts_in_parts_are_independent_of_one_another_and_keep_their_weights(
    tmp_path: Path, drawn: list[Rollout]
) -> None:
    fields: dict[str, Any] = {"rollouts_per_prompt": 4, "loss_estimator": "sampled", "max_steps": 1, "trb_epsilon": 0.5}
    trainer = make_trainer(tmp_path, rollout_batch_size=2, rows=1, **fields)
    trainer.train()
    first, second = drawn
    assert len(first.tokens) == len(second.tokens) == 2
    # One prompt four times: equal numbers in both parts would give equal rollouts.
    assert first.tokens.shape != second.tokens.shape or not torch.equal(first.tokens, second.tokens)
    mask = [rollout.mask for rollout in drawn]
    weight = torch.cat([(r.student_log_prob - r.log_prob)[m] for r, m in zip(drawn, mask, strict=True)]).exp()
    gap = torch.cat([(r.student_log_prob - r.teacher_log_prob)[m] for r, m in zip(drawn, mask, strict=True)])
    assert steps(trainer)[0]["loss"] == pytest.approx((weight * gap).mean().item(), rel=1e-4, abs=1e-5)
    drawn.clear()
    make_trainer(tmp_path, rollout_batch_size=4, rows=1, **fields).train()
    make_trainer(tmp_path, rows=1, **fields).train()
    assert torch.equal(drawn[0].tokens, drawn[1].tokens)


def test_a_saved_student_stops_by_the_ids_of_both_models(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, None, tiny_llama(1, eos=[END_OF_TURN, EOS]), max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    saved_ids = LlamaForCausalLM.from_pretrained(tmp_path / "model").generation_config.eos_token_id
    assert saved_ids == [EOS, END_OF_TURN]
    assert make_trainer(tmp_path).model.generation_config.eos_token_id == EOS


# ---- Resuming ----


@pytest.mark.parametrize(
    ("rows", "accumulation", "lora"),
    [(32, 1, False), (8, 1, False), (12, 1, False), (32, 2, True)],
    ids=["in the first epoch", "between epochs", "in a later epoch", "accumulating, with dropout"],
)
def test_a_resumed_run_repeats_the_uninterrupted_run_bitwise(
    tmp_path: Path, rows: int, accumulation: int, lora: bool
) -> None:
    last = 4 if rows == 12 else 2
    fields: dict[str, Any] = {
        "rows": rows,
        "gradient_accumulation_steps": accumulation,
        "lr_scheduler_type": "linear",
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": last,
        "held_out": prompts(5),
        "eval_strategy": "steps",
        "eval_steps": 1,
        "peft_config": LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.2) if lora else None,
    }
    straight = make_trainer(tmp_path / "straight", **fields)
    straight.train()
    resumed = make_trainer(tmp_path / "resumed", **fields)
    torch.manual_seed(12345)  # whatever another process's global state is
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / f"checkpoint-{last}"))
    assert without_timings(resumed.state.log_history)[:-1] == without_timings(straight.state.log_history)[:-1]
    assert len(steps(resumed)) == 6
    found = weights(resumed)
    for name, weight in weights(straight).items():
        assert torch.equal(found[name], weight), name


def test_epochs_visit_every_prompt_in_a_new_order(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, rows=8, max_steps=4)
    batches: list[list[str]] = []
    generate = trainer._generate
    trainer._generate = lambda texts: (batches.append(texts), generate(texts))[1]
    trainer.train()
    first, second = batches[0] + batches[1], batches[2] + batches[3]
    assert sorted(first) == sorted(second) == sorted(prompts(8)["prompt"])
    assert first != second


# ---- What is logged ----


@pytest.mark.parametrize(("accumulation", "epsilon_0"), [(1, 0.1), (2, 0.1), (2, 2.0)])
def test_metrics_are_the_token_means_of_the_rollouts(
    tmp_path: Path, accumulation: int, epsilon_0: float, rollouts: list[tuple[float, Rollout]]
) -> None:
    trainer = make_trainer(
        tmp_path, max_steps=4, trb_epsilon=epsilon_0, gradient_accumulation_steps=accumulation, temperature=1.3
    )
    trainer.train()
    if epsilon_0 == 2.0:  # both cases of beta_one_fraction
        blended = torch.cat([rollout.beta[rollout.mask] for epsilon, rollout in rollouts if epsilon > 0])
        assert ((blended > 0.5) & (blended < 1)).any()
        assert (blended == 1).any()
    for log, (epsilon, rollout) in zip(steps(trainer), rollouts, strict=True):
        assert log.keys() >= METRICS
        beta, kl = rollout.beta[rollout.mask], rollout.kl[rollout.mask]
        assert log["trb/beta_mean"] == pytest.approx(beta.mean().item(), rel=1e-6)
        assert log["trb/kl"] == pytest.approx(kl.mean().item(), rel=1e-6)
        assert log["trb/kl_max"] == kl.max().item() <= epsilon * (1 + 1e-4) + 1e-7
        ordered = beta.sort().values.tolist()
        assert log["trb/beta_p10"] == ordered[math.ceil(0.1 * len(ordered)) - 1]
        assert log["trb/beta_p90"] == ordered[math.ceil(0.9 * len(ordered)) - 1]
        assert log["trb/beta_one_fraction"] == (beta == 1).float().mean().item()
        assert log["trb/kl_budget_used"] == pytest.approx(log["trb/kl"] / epsilon if epsilon else 0.0)
        assert log["trb/reverse_kl"] == pytest.approx(log["loss"], rel=1e-5)
        if rollout.teacher_log_prob is not None:  # measured while decoding, and again by the loss's pass
            while_decoding = rollout.teacher_log_prob[rollout.mask].mean().item()
            assert log["trb/teacher_log_prob"] == pytest.approx(while_decoding, abs=1e-5)
        assert 0 < log["trb/teacher_entropy"] < math.log(len(VOCABULARY))
        assert log["trb/tokens_per_second"] > 0
        assert log["completions/mean_length"] == pytest.approx(rollout.mask.sum(1).float().mean().item())
    assert steps(trainer)[3]["trb/teacher_log_prob"] < 0  # with epsilon 0 as well


def test_metrics_of_several_steps_are_averaged(tmp_path: Path) -> None:
    every, third = (make_trainer(tmp_path, max_steps=3, logging_steps=n) for n in (1, 3))
    every.train()
    third.train()
    (log,) = steps(third)
    for name in ("trb/epsilon", "trb/kl", "trb/beta_mean"):
        assert log[name] == pytest.approx(sum(single[name] for single in steps(every)) / 3)
    assert log["trb/reverse_kl"] == pytest.approx(log["loss"], rel=0.05)  # by tokens there, by steps here


def test_another_divergence_is_not_logged_as_the_reverse_kl(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, beta=0.5, max_steps=1)
    trainer.train()
    assert "trb/reverse_kl" not in steps(trainer)[0]
    assert steps(trainer)[0].keys() >= METRICS - {"trb/reverse_kl"}


def test_an_excluded_token_does_not_spoil_the_mean_teacher_log_prob(tmp_path: Path) -> None:
    student = tiny_llama(0, sharpness=0.05)
    with torch.no_grad():  # nearly every token is the teacher's EOS, which does not end this student
        student.model.norm.weight.zero_()
        student.lm_head.bias = nn.Parameter(torch.zeros(64).index_fill(0, torch.tensor([END_OF_TURN]), 4.0))
    trainer = make_trainer(tmp_path, student, tiny_llama(1, eos=END_OF_TURN), rollout_policy="student", max_steps=3)
    trainer.train()
    logs = steps(trainer)
    assert all(-20 < log["trb/teacher_log_prob"] < 0 for log in logs)
    assert logs[2]["trb/reverse_kl"] < logs[0]["trb/reverse_kl"]  # it learns to leave the excluded token


# ---- Evaluation ----


def answers_a_digit(prompt: Any, completion: str, row: Mapping[str, Any]) -> bool:
    return completion[:1].isdigit() and row["answer"].isdigit()


def test_pass_at_1_is_the_share_of_right_samples(tmp_path: Path) -> None:
    asked: list[str] = []

    def verifier(prompt: Any, completion: str, row: Mapping[str, Any]) -> bool:
        asked.append(row["prompt"])
        return answers_a_digit(prompt, completion, row)

    trainer = make_trainer(tmp_path, held_out=prompts(6), verifier=verifier, eval_samples=50, max_completion_length=2)
    metrics = trainer.evaluate()
    assert sorted(asked) == sorted([*prompts(6)["prompt"]] * 50)
    with torch.no_grad():
        chances = [
            trainer.model(torch.tensor([ids])).logits[0, -1].softmax(-1)[4:14].sum().item()
            for ids in trainer._tokenize_prompts(list(prompts(6)["prompt"]))[0]
        ]
    chance = sum(chances) / 6
    assert abs(metrics["eval_pass@1"] - chance) < 4 * math.sqrt(chance * (1 - chance) / 300)
    assert trainer.state.log_history[-1]["eval_pass@1"] == metrics["eval_pass@1"]
    assert math.isfinite(metrics["eval_loss"])
    assert metrics["eval_trb/reverse_kl"] == pytest.approx(metrics["eval_loss"], rel=0.1)
    again = trainer.evaluate()  # the same step, the same random numbers
    assert (again["eval_pass@1"], again["eval_loss"]) == (metrics["eval_pass@1"], metrics["eval_loss"])


def test_pass_at_1_can_choose_the_best_checkpoint(tmp_path: Path) -> None:
    fields = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer = make_trainer(
        tmp_path,
        held_out=prompts(6),
        verifier=answers_a_digit,
        load_best_model_at_end=True,
        metric_for_best_model="eval_pass@1",
        eval_samples=4,
        **fields,
    )
    trainer.train()
    found = [entry["eval_pass@1"] for entry in trainer.state.log_history if "eval_pass@1" in entry]
    assert len(found) == 2
    assert trainer.state.best_metric == max(found)


def test_each_of_several_eval_sets_has_its_pass_at_1(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, held_out={"easy": prompts(4), "hard": prompts(5)}, verifier=answers_a_digit)
    metrics = trainer.evaluate()
    assert {"eval_easy_pass@1", "eval_hard_pass@1"} <= metrics.keys()


def test_without_a_verifier_there_is_no_pass_at_1(tmp_path: Path) -> None:
    assert "eval_pass@1" not in make_trainer(tmp_path, held_out=prompts(4)).evaluate()


# ---- Loading and refusing ----


def test_models_are_loaded_from_paths(tmp_path: Path) -> None:
    student, teacher = tiny_llama(0), tiny_llama(1, vocab_size=72).to(torch.bfloat16)
    paths = [saved(tmp_path / name, model, tiny_tokenizer()) for name, model in (("s", student), ("t", teacher))]
    trainer = make_trainer(tmp_path / "run", *paths, max_steps=1)
    trainer.train()
    assert trainer.teacher_model.dtype == torch.bfloat16
    assert trainer.model.dtype == torch.float32
    by_field = make_trainer(tmp_path / "run", paths[0], paths[1], teacher_model_init_kwargs={"dtype": "float32"})
    assert by_field.teacher_model.dtype == torch.float32


def test_the_teacher_may_be_named_in_the_config(tmp_path: Path) -> None:
    path = saved(tmp_path / "teacher", tiny_llama(1), tiny_tokenizer())
    args = TRBConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, teacher_model_name_or_path=path)
    trainer = TRBTrainer(tiny_llama(0), args=args, train_dataset=prompts(8), processing_class=tiny_tokenizer())
    assert torch.equal(trainer.teacher_model.lm_head.weight, tiny_llama(1).lm_head.weight)


def test_a_teacher_with_other_token_ids_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    swapped = [*VOCABULARY]
    swapped[10], swapped[11] = swapped[11], swapped[10]
    tiny_tokenizer(swapped).save_pretrained(tmp_path / "teacher")  # no weights in the folder
    with pytest.raises(VocabularyMismatch, match="'6' has id 10"):
        make_trainer(tmp_path, None, str(tmp_path / "teacher"))


def test_a_teacher_without_a_tokenizer_is_taken_at_its_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_llama(1).save_pretrained(tmp_path / "teacher")
    make_trainer(tmp_path, None, str(tmp_path / "teacher"))
    assert "tokenizer could not be loaded, so token ids are not compared" in caplog.text


def test_refusals(tmp_path: Path) -> None:
    def new(teacher: Any = None, args: Any = None, **fields: Any) -> TRBTrainer:
        args = args or TRBConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **fields)
        return TRBTrainer(tiny_llama(0), teacher, args, train_dataset=prompts(8), processing_class=tiny_tokenizer())

    with pytest.raises(ValueError, match="a teacher is required"):
        new()
    with pytest.raises(TypeError, match="args must be a TRBConfig, got DistillationConfig"):
        new(tiny_llama(1), DistillationConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False))
    with pytest.raises(ValueError, match="teacher_model_init_kwargs is set, but teacher_model is already"):
        new(tiny_llama(1), teacher_model_init_kwargs={"dtype": "float32"})
    with pytest.raises(ValueError, match=r"only the reverse KL \(beta = 1.0\) merges them, got beta = 0.5"):
        new(tiny_llama(1, eos=END_OF_TURN), beta=0.5)
    with pytest.raises(ValueError, match="set remove_unused_columns=False"):
        new(tiny_llama(1), eval_verifier="numeric", remove_unused_columns=True)
    with pytest.raises(ValueError, match="a verifier is one of numeric, demo"):
        new(tiny_llama(1), eval_verifier="mathematics")
    with pytest.raises(ValueError, match="an optimizer step takes 16 prompts, the train_dataset has 8"):
        new(tiny_llama(1), per_device_train_batch_size=16).train()


def test_the_model_card_names_the_method(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text()
    assert "Trust-Region Behavior Blending for On-Policy Distillation" in card
    assert "2605.31159" in card
    assert "trb" in trainer.model.model_tags
