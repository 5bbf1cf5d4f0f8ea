"""Tests faults that would train on wrong numbers: non-finite losses, teachers that exclude tokens, TRL's own
decoder."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerState

import trbext.training.teachers.loading
from python_tests.models.tiny_models import END_OF_TURN, EOS, tiny_llama
from python_tests.training.trainer_cases import METRICS, make_trainer, prompts, steps, weights
from trbext.errors import NonFiniteTraining, VerifierFailed
from trbext.rollout.policies import FixedBeta
from trbext.training.config import TRBConfig
from trbext.training.teachers.loading import prepare_teacher

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}


def biased(model: Any, ids: list[int], value: float) -> Any:
    """Returns `model` with `value` added to its logits of `ids`."""
    bias = torch.zeros(model.lm_head.out_features)
    bias[ids] = value
    model.lm_head.bias = nn.Parameter(bias)
    return model


# ---- Non-finite losses and gradients ----


@pytest.mark.parametrize("estimator", ["full", "sampled"])
def test_a_loss_that_is_not_finite_stops_the_run_before_its_step(tmp_path: Path, estimator: str) -> None:
    trainer = make_trainer(tmp_path, rollout_policy="student", loss_estimator=estimator, max_steps=3, **SAVING)
    compute_loss = trainer._compute_loss

    def spoiled(*args: Any) -> Any:
        if trainer.state.global_step == 1:
            with torch.no_grad():  # as an overflow or a broken device would
                trainer.teacher_model.lm_head.weight[7] = math.nan
        return compute_loss(*args)

    trainer._compute_loss = spoiled
    with pytest.raises(
        NonFiniteTraining, match=r"the loss of optimizer step 2 is nan.*The student's weights are finite"
    ):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert all(weight.isfinite().all() for weight in weights(trainer).values())


@pytest.mark.parametrize("clipping", [1.0, 0.0])
def test_a_gradient_that_is_not_finite_stops_the_run_before_its_step(tmp_path: Path, clipping: float) -> None:
    trainer = make_trainer(tmp_path, max_steps=3, max_grad_norm=clipping, **SAVING)
    norm = trainer.model.model.norm.weight
    norm.register_hook(lambda gradient: gradient * (math.inf if trainer.state.global_step == 1 else 1))
    with pytest.raises(NonFiniteTraining, match=r"the gradient norm of optimizer step 2 is (inf|nan)"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert all(weight.isfinite().all() for weight in weights(trainer).values())


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, policy=FixedBeta(0.5))
    generate = trainer._generate_single_turn

    def then_spoiled(*args: Any) -> Any:
        found = generate(*args)
        with torch.no_grad():
            trainer.model.model.layers[0].mlp.up_proj.weight[0, 0] = math.inf
        return found

    trainer._generate_single_turn = then_spoiled
    with pytest.raises(
        NonFiniteTraining, match=r"weights are not finite, model\.layers\.0\.mlp\.up_proj\.weight first"
    ):
        trainer.train()


# ---- Teachers that exclude tokens ----


@pytest.mark.parametrize("whose", ["teacher", "student", "both"])
def test_excluded_tokens_are_served_by_our_own_loss(tmp_path: Path, whose: str) -> None:
    student, teacher = tiny_llama(0), tiny_llama(1, hidden=32)
    for name, model in (("student", student), ("teacher", teacher)):
        if whose in (name, "both"):
            biased(model, [40, 41, 42, 43], -math.inf)
    trainer = make_trainer(tmp_path, student, teacher, max_steps=4)
    if whose != "teacher":
        trainer.model.lm_head.bias.requires_grad_(False)
    trainer.train()
    assert all(log["loss"] > 0 for log in steps(trainer))
    assert steps(trainer)[-1]["loss"] == pytest.approx(steps(trainer)[-1]["trb/reverse_kl"], rel=1e-5)
    assert all(weight.isfinite().all() for name, weight in weights(trainer).items() if name != "lm_head.bias")


def test_excluded_tokens_need_the_reverse_kl(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"excludes tokens \(-inf in its bias\).* got beta = 0.5"):
        make_trainer(tmp_path, None, biased(tiny_llama(1), [40], -math.inf), beta=0.5)


def test_a_budget_that_buys_nothing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = [EOS, *range(5, 25)]
    teacher = biased(tiny_llama(1), [token for token in range(64) if token not in known], -math.inf)
    trainer = make_trainer(tmp_path, None, teacher, trb_epsilon=0.02)
    trainer.train()
    assert [log["trb/beta_zero_fraction"] for log in steps(trainer)] == [1.0, 1.0]
    assert caplog.text.count("beta is 0 at 100 % of the tokens") == 1
    caplog.clear()
    usual = make_trainer(tmp_path)
    usual.train()
    assert steps(usual)[0]["trb/beta_zero_fraction"] < 0.5
    assert "beta is 0" not in caplog.text


# ---- The student decoded by TRL ----


def decoded_by_trl(trainer: Any, prompts: list[list[int]]) -> list[list[int]]:
    trainer.model.train()
    found: list[list[int]] = trainer._generate_single_turn(prompts, None, {})
    return found


def test_trl_stops_at_every_eos_id(tmp_path: Path) -> None:
    student = biased(tiny_llama(0), [END_OF_TURN], 4.0)  # it draws the teacher's EOS often
    fields: dict[str, Any] = {"rollout_policy": "student", "top_p": 0.999, "max_completion_length": 20}
    trainer = make_trainer(tmp_path, student, tiny_llama(1, eos=END_OF_TURN), **fields)
    completions = decoded_by_trl(trainer, [[5, 6, 7]] * 16)
    assert any(completion[-1] == END_OF_TURN for completion in completions)
    assert all(token not in (EOS, END_OF_TURN) for completion in completions for token in completion[:-1])
    trainer.train()
    assert all(math.isfinite(log["loss"]) for log in steps(trainer))


def test_trl_never_writes_an_id_that_only_the_student_has(tmp_path: Path) -> None:
    student = biased(tiny_llama(0, vocab_size=72), list(range(64, 72)), 6.0)
    fields: dict[str, Any] = {"rollout_policy": "student", "top_p": 0.999}
    trainer = make_trainer(tmp_path, student, tiny_llama(1), generation_kwargs={"suppress_tokens": [9]}, **fields)
    completions = decoded_by_trl(trainer, [[5, 6, 7]] * 16)
    assert all(token < 64 and token != 9 for completion in completions for token in completion)
    trainer.train()
    assert all(math.isfinite(log["loss"]) for log in steps(trainer))


@pytest.mark.parametrize(
    "leftover",
    [
        {"suppress_tokens": list(range(4, 40))},
        {"min_p": 0.9},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 3},
        {"bad_words_ids": [[20]]},
        {"repetition_penalty": 5.0},
        {"forced_eos_token_id": EOS},
        {"min_new_tokens": 8},
    ],
)
def test_what_a_checkpoint_left_in_its_generation_config_changes_no_rollout(
    tmp_path: Path, leftover: dict[str, Any]
) -> None:
    fields: dict[str, Any] = {"rollout_policy": "student", "top_p": 0.999}
    found = []
    for left in ({}, leftover):
        student = tiny_llama(0)
        for name, value in left.items():
            setattr(student.generation_config, name, value)
        trainer = make_trainer(tmp_path, student, **fields)
        torch.manual_seed(0)
        found.append(decoded_by_trl(trainer, [[5, 6, 7], [8, 9]] * 4))
        assert all(getattr(student.generation_config, name) == value for name, value in left.items())
    assert found[0] == found[1]


# ---- The teacher of the loss ----


@pytest.mark.parametrize("fields", [{}, {"top_p": 0.9}])
def test_a_teacher_whose_rows_would_be_rotated_by_one_another_is_refused_whoever_writes(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 16}
    teacher = tiny_llama(1)
    teacher.config.rope_parameters = {"rope_theta": 1e4, "rope_type": "longrope", "factor": 4.0, **factors}
    teacher = type(teacher)(teacher.config)
    make_trainer(tmp_path, None, teacher, rollout_policy="student", **fields).train()
    trainer = make_trainer(tmp_path, None, teacher, rollout_policy="student", max_completion_length=20, **fields)
    with pytest.raises(ValueError, match=r"the teacher LlamaForCausalLM rotates .* past 16 tokens"):
        trainer.train()


def test_sharded_models_are_checked_before_their_first_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr("trbext.training.trainer.check_model", lambda model, name, **kwargs: checked.append(name))
    make_trainer(tmp_path)
    assert checked == ["student", "teacher"]
    monkeypatch.setattr("trl.distributed.DistributedBackend.is_fsdp", property(lambda self: True))
    of_student: dict[str, Any] = {"rollout_policy": "student"}
    for fields, expected in (
        ({}, ["student", "teacher"]),
        (of_student, ["student"]),
        (of_student | {"top_p": 0.9}, []),  # TRL decodes, and nothing is gathered
    ):
        checked.clear()
        trainer = make_trainer(tmp_path, **fields)
        assert checked == []  # weights are not whole
        trainer.train()
        assert list(dict.fromkeys(checked)) == expected
    checked.clear()
    make_trainer(tmp_path, check_models=False).train()
    assert checked == []


# ---- The teacher under other backends ----


def test_the_teacher_is_frozen(tmp_path: Path) -> None:
    teacher = tiny_llama(1)
    make_trainer(tmp_path, None, teacher)
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert not teacher.training


def test_an_engine_whose_eval_returns_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine(nn.Module):  # as DeepSpeed's
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def eval(self) -> None:  # type: ignore[override]
            self.train(False)

    class Accelerator:
        class state:
            deepspeed_plugin = object()

    monkeypatch.setattr(trbext.training.teachers.loading, "prepare_deepspeed", lambda model, accelerator: Engine(model))
    teacher = tiny_llama(1).train()
    engine: Any = prepare_teacher(teacher, Accelerator)  # type: ignore[arg-type]
    assert engine.module is teacher
    assert not teacher.training


def test_the_cpu_is_chosen_if_there_is_no_accelerator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert TRBConfig(str(tmp_path), bf16=False).use_cpu


# ---- Students and verifiers that a run could not use ----


def test_a_student_without_a_trained_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the student LlamaForCausalLM must have a parameter that requires a gradient"):
        make_trainer(tmp_path, student=tiny_llama(0).requires_grad_(False))


def test_a_compiled_student_is_refused_because_nothing_would_load_its_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model must be the model itself.*set torch_compile=True"):
        make_trainer(tmp_path, student=torch.compile(tiny_llama(0)))


@pytest.mark.parametrize("ends", [False, True])
def test_a_verifier_that_raises_on_all_that_is_written_costs_no_step(tmp_path: Path, ends: bool) -> None:
    def verifier(prompt: Any, completion: str, row: Any) -> bool:
        if completion:  # not so when the verifier is tried before the run
            sys.exit(3) if ends else [][0]
        return False

    trainer = make_trainer(
        tmp_path,
        held_out=prompts(4),
        verifier=verifier,
        eval_strategy="steps",
        eval_steps=2,
        max_steps=4,
        logging_steps=50,
    )
    with pytest.raises(VerifierFailed, match=r"raised on all 4 completions.*(sys.exit\(3\)|list index out of range)"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    (log,) = TrainerState.load_from_json(str(tmp_path / "checkpoint-2" / "trainer_state.json")).log_history
    assert log["step"] == 2
    assert log.keys() >= METRICS  # of both steps, which a continued run will not take again
    make_trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=True)
