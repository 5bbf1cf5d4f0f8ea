"""Tests TRBConfig: what it accepts, from Python, the command line and YAML, and what it refuses with which words."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import HfArgumentParser
from trl import DistillationConfig, TrlParser

from trbext.rollout import Policy
from trbext.training.config import TRBConfig
from trbext.training.fields.checks import device_has_bf16
from trbext.training.objective import Objective


def config(**fields: Any) -> TRBConfig:
    return TRBConfig(output_dir="unused", use_cpu=True, bf16=False, **fields)


def test_defaults_are_the_papers_and_trls() -> None:
    plain, ours = DistillationConfig(output_dir="unused", use_cpu=True, bf16=False), config()
    assert (ours.rollout_policy, ours.trb_schedule) == ("trb", "linear")
    assert (ours.trb_epsilon, ours.trb_warmup_steps) == (0.02, 50)
    assert ours.loss_top_k is None
    assert ours.beta == plain.beta == 1.0  # the reverse KL
    assert {name for name, value in plain.to_dict().items() if ours.to_dict()[name] != value} == {"logging_steps"}
    assert ours.logging_steps == 1
    assert ours.report_to == []


def test_parses_from_the_command_line(tmp_path: Path) -> None:
    words = f"--output_dir {tmp_path} --use_cpu --trb_epsilon 0.05 --trb_warmup_steps 0.25 --trb_schedule piecewise"
    words += " --loss_top_k 16 --eval_samples 4 --eval_verifier numeric --rollout_policy trb --trb_schedule_points"
    (parsed,) = HfArgumentParser(TRBConfig).parse_args_into_dataclasses([*words.split(), '{"20": 0.01, "0": 0.05}'])
    assert parsed.trb_schedule_points == {0: 0.05, 20: 0.01}
    assert (parsed.trb_epsilon, parsed.trb_warmup_steps, parsed.loss_top_k, parsed.eval_samples) == (0.05, 0.25, 16, 4)


def test_parses_from_yaml_and_the_command_line_overrides_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\ntrb_epsilon: 1e-2\ntrb_warmup_steps: 25\ntrb_schedule: piecewise\n"
        "trb_schedule_points: {0: 0.02, 25: 0.0}\nloss_top_k: 16\n"
    )
    (parsed,) = TrlParser(TRBConfig).parse_args_and_config(["--config", str(recipe), "--loss_top_k", "8"])
    assert (parsed.trb_epsilon, parsed.trb_warmup_steps, parsed.loss_top_k) == (0.01, 25, 8)
    assert parsed.trb_schedule_points == {0: 0.02, 25: 0.0}


def test_help_of_every_field_renders() -> None:
    text = io.StringIO()
    HfArgumentParser(TRBConfig).print_help(text)  # a bare percent sign would raise
    own = {field.name for field in dataclasses.fields(TRBConfig)}
    own -= {field.name for field in dataclasses.fields(DistillationConfig)}
    assert len(own) == 61
    for name in own:
        assert f"--{name}" in text.getvalue()
        assert TRBConfig.__dataclass_fields__[name].metadata["help"].endswith(".")


def test_help_tells_what_the_size_of_a_part_changes_besides_time_and_memory() -> None:
    assert (
        "Other tokens of the same law are drawn"
        in TRBConfig.__dataclass_fields__["rollout_batch_size"].metadata["help"]
    )


def test_a_warmup_below_one_is_a_share_of_the_run() -> None:
    share = config(trb_warmup_steps=0.1, trb_epsilon=0.5)
    assert share.schedule(total_steps=400)(0) == 0.5
    assert share.schedule(total_steps=400)(39) > 0
    assert share.schedule(total_steps=400)(40) == 0
    assert share.schedule(total_steps=401)(40) > 0  # 40.1 steps round up, as transformers rounds its shares
    assert config(trb_warmup_steps=1).schedule(total_steps=400)(1) == 0  # 1 is one step, not the whole run


def test_schedules_reach_their_values() -> None:
    assert config(trb_epsilon=0.04, trb_warmup_steps=4).schedule(9)(1) == pytest.approx(0.03)
    assert config(trb_epsilon=0.04, trb_warmup_steps=4, trb_schedule="constant").schedule(9)(8) == 0.04
    cosine = config(trb_epsilon=0.04, trb_warmup_steps=4, trb_schedule="cosine").schedule(9)
    assert cosine(1) == pytest.approx(0.02 * (1 + math.cos(math.pi / 4)))
    assert config(trb_schedule="piecewise", trb_schedule_points={0: 0.1, 4: 0.0}).schedule(9)(1) == pytest.approx(0.075)


@pytest.mark.parametrize(
    ("fields", "active"),
    [
        ({}, True),
        ({"rollout_policy": "student"}, False),
        ({"trb_epsilon": 0.0}, False),
        ({"trb_warmup_steps": 0}, False),
        ({"trb_warmup_steps": 0, "trb_schedule": "constant"}, True),
        ({"trb_schedule": "piecewise", "trb_schedule_points": {0: 0.0, 9: 0.0}}, False),
        ({"trb_schedule": "piecewise", "trb_schedule_points": {0: 0.0, 9: 0.1}}, True),
    ],
)
def test_budget_active(fields: dict[str, Any], active: bool) -> None:
    assert config(**fields).budget_active is active


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"rollout_policy": "techer"},
            "rollout_policy must be one of trb, student, fixed, fixed_beta, skd, arithmetic, temperature, sft, "
            "teacher, gkd, relay, switching or 'module:Class', got 'techer'",
        ),
        ({"rollout_policy_kwargs": {"share": 1}}, "belong to a 'module:Class', got rollout_policy 'trb'"),
        ({"rollout_policy": "a:B", "rollout_policy_kwargs": "share=1"}, "rollout_policy_kwargs must be a mapping"),
        ({"fixed_beta": 1.5}, "fixed_beta: beta must be a number with 0 <= beta <= 1, got 1.5"),
        ({"skd_top_k": 0}, "skd_top_k must be a whole number of at least 1, got 0"),
        (
            {"skd_teacher_temperature": 0.0},
            "skd_top_k, skd_teacher_temperature: teacher_temperature must be .* got 0.0",
        ),
        ({"arithmetic_alpha": -0.1}, "arithmetic_alpha: alpha must be .* got -0.1"),
        ({"temperature_start": 0.0}, "temperature_start: start must be .* got 0.0"),
        ({"temperature_warmup_steps": 2.5}, "temperature_warmup_steps must be a whole number .* got 2.5"),
        ({"sft_steps": -1}, "sft_steps must be a whole number"),
        ({"gkd_lambda": 1.1}, "gkd_lambda, gkd_coin: student_share must be .* got 1.1"),
        ({"relay_top_k": 0}, "relay_top_k must be a whole number of at least 1, got 0"),
        ({"switching_turn_tokens": 0}, "switching_turn_tokens must be a whole number of at least 1, got 0"),
        ({"gkd_coin": "token"}, "gkd_lambda, gkd_coin: per must be one of batch, sequence, got 'token'"),
        ({"trb_epsilon": -0.01}, "trb_epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got -0.01"),
        ({"trb_epsilon": math.nan}, "trb_epsilon .* got nan"),
        ({"trb_schedule": "square"}, "trb_schedule must be one of linear, cosine, constant, piecewise, got 'square'"),
        ({"trb_warmup_steps": -1}, "trb_warmup_steps must be a whole number"),
        ({"trb_warmup_steps": 2.5}, "trb_warmup_steps must be a whole number .* got 2.5"),
        ({"trb_warmup_steps": math.inf}, "trb_warmup_steps must be a whole number"),
        ({"trb_schedule": "piecewise"}, "needs at least one point"),
        ({"trb_schedule_points": {0: 0.1}}, "points belong only to the schedule"),
        ({"trb_schedule": "piecewise", "trb_schedule_points": "0.1,0.2"}, "trb_schedule_points must be a mapping"),
        ({"trb_schedule": "piecewise", "trb_schedule_points": {"soon": 0.1}}, "must map optimizer steps to budgets"),
        ({"trb_schedule": "piecewise", "trb_schedule_points": {0: -0.1}}, "must be >= 0"),
        ({"loss_top_k": 0}, "loss_top_k must be a whole number of at least 1, got 0"),
        ({"loss_top_k": 16, "beta": 0.5}, "loss_top_k estimates the reverse KL, .* got beta = 0.5"),
        ({"loss_estimator": "k3"}, "loss_estimator must be one of full, top_k, sampled, routed, got 'k3'"),
        ({"loss_estimator": "full", "loss_top_k": 4}, "loss_top_k belongs to loss_estimator 'top_k', got 'full'"),
        ({"loss_estimator": "sampled", "beta": 0.0}, "loss_estimator='sampled' is of the reverse KL"),
        ({"loss_weight_cap": 2.0}, "loss_weight_cap belongs to loss_estimator 'sampled' or 'routed', got 'full'"),
        ({"loss_estimator": "sampled", "loss_weight_cap": 0.5}, "loss_weight_cap must be at least 1, .* got 0.5"),
        ({"veto_start": 1.0}, "veto_start must be an exponent with 0 <= veto_start < 1, got 1.0"),
        ({"veto_start": 0.4, "beta": 0.5}, "veto_start=0.4 is of the reverse KL, which is beta = 1.0, got beta = 0.5"),
        ({"veto_steps": 1.5}, "veto_steps must be a whole number"),
        ({"rollouts_per_prompt": 0}, "rollouts_per_prompt must be a whole number of at least 1, got 0"),
        ({"rollout_batch_size": 0}, "rollout_batch_size must be a whole number of at least 1, got 0"),
        ({"eval_samples": 0}, "eval_samples must be a whole number of at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be a number from 1e-6 to 1e6, got 0.0"),
        ({"max_completion_length": None}, "max_completion_length must be a whole number of at least 1, got None"),
        *(
            ({name: value}, f"{name} must be a whole number of at least 1, got {value}")
            for name in (
                *("max_completion_length", "rollouts_per_prompt", "rollout_batch_size", "rollout_length_start"),
                *(
                    "rollout_length_window",
                    "loss_prefix_tokens",
                    "loss_top_k",
                    "skd_top_k",
                    "relay_top_k",
                    "relay_legs",
                ),
                *("switching_turn_tokens", "teacher_top_k", "eval_samples", "gradient_accumulation_steps"),
            )
            for value in (2.5, True)
        ),
        ({"relay_leg_length": 1.5}, "relay_leg_length must be a whole number of at least 0, got 1.5"),
        *(
            ({name: value}, f"{name} must be a whole number .*got {value}$")
            for name, value in (
                *(("max_steps", 2.0), ("max_steps", 1e3), ("seed", 1.5), ("data_seed", True), ("top_k", 2.5)),
                ("dataloader_num_workers", 0.5),
            )
        ),
        ({"learning_rate": "1e-5"}, "learning_rate must be a number >= 0, and finite, got '1e-5'"),
        ({"trb_warmup_steps": "50"}, "trb_warmup_steps must be a whole number .*, got '50'"),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers needs dataloader_num_workers of at"),
        *(
            ({"trb_schedule": "piecewise", "trb_schedule_points": points}, "each whole step once, got {")
            for points in ({0: 0.05, 2.5: 0}, {0: 0.05, 20.2: 0.04, 20.7: 0}, {0: 0.05, math.inf: 0}, {"1": 0.1, 1: 0})
        ),
        ({"rollout_length_points": {"0": 1, 0: 2}}, "rollout_length_points must have each step once, got '0', 0"),
    ],
)
def test_refuses_out_of_range(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**fields)


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    made = config(per_device_train_batch_size=np.int64(4), seed=np.int32(3))
    assert made == config(per_device_train_batch_size=4, seed=3)
    assert json.loads(made.to_json_string())["per_device_train_batch_size"] == 4


def test_numbers_of_numpy_can_be_saved() -> None:
    fields = dict.fromkeys(("learning_rate", "weight_decay", "save_steps", "temperature"), 0.5)
    fields |= {"trb_epsilon": 0.25, "trb_warmup_steps": 0.5, "loss_weight_cap": 2.0, "loss_estimator": "sampled"}
    made = config(**{name: np.float32(value) if value != "sampled" else value for name, value in fields.items()})
    saved = json.loads(made.to_json_string())
    assert {name: saved[name] for name in fields} == fields
    assert {type(getattr(made, name)) for name in fields} == {float, str}


@pytest.mark.parametrize("estimator", ["sampled", "routed"])
@pytest.mark.parametrize("altered", [{"top_p": 0.5}, {"generation_kwargs": {"temperature": 0.5}}])
def test_a_weighted_loss_of_sampled_tokens_refuses_altered_sampling(estimator: str, altered: dict[str, Any]) -> None:
    """Of the student alone too: its weight pi_S / mu would be taken for 1."""
    chosen: dict[str, Any] = {"rollout_policy": "student", "loss_estimator": estimator, **altered}
    if estimator == "routed":  # of TRB only, here without a budget
        chosen |= {"rollout_policy": "trb", "trb_epsilon": 0.0}
    with pytest.raises(ValueError, match=f"cannot be combined with loss_estimator='{estimator}', which weights"):
        config(**chosen)
    assert not config(**chosen, loss_weighted=False).loss_weighted


def test_how_tokens_are_cached_is_no_altered_law() -> None:
    chosen: dict[str, Any] = {"rollout_policy": "student", "loss_estimator": "sampled"}
    assert config(**chosen, cache_implementation="static").loss_weighted
    assert config(**chosen, generation_kwargs={"use_cache": True}).loss_weighted


def test_the_first_budget_is_that_of_the_schedule() -> None:
    assert config(trb_epsilon=0.3, trb_warmup_steps=0).first_epsilon == 0.3
    points: dict[str, Any] = {"trb_schedule": "piecewise", "trb_schedule_points": {0: 0.7, 5: 0.0}}
    assert config(**points).first_epsilon == 0.7


ALTERED = [
    {"top_p": 0.9},
    {"top_k": 20},
    {"min_p": 0.1},
    {"repetition_penalty": 1.1},
    {"generation_kwargs": {"top_p": 0.9}},
    {"generation_kwargs": {"top_k": 20}},
    {"generation_kwargs": {"min_p": 0.1}},
    {"generation_kwargs": {"repetition_penalty": 1.1}},
    {"generation_kwargs": {"suppress_tokens": [3]}},
    {"generation_kwargs": {"do_sample": False}},
    {"generation_kwargs": {"temperature": 0.7}},
]


@pytest.mark.parametrize("fields", ALTERED)
def test_refuses_altered_sampling_while_the_budget_is_active(fields: dict[str, Any]) -> None:
    name = next(iter(fields["generation_kwargs"])) if "generation_kwargs" in fields else next(iter(fields))
    with pytest.raises(ValueError, match=rf"{name}.*cannot be combined.*KL budget would be enforced on another one"):
        config(**fields)
    config(**fields, rollout_policy="student")
    config(**fields, trb_epsilon=0.0)


@pytest.mark.parametrize("policy", ["fixed", "skd", "temperature", "teacher", "module:Class"])
def test_refuses_altered_sampling_of_every_policy_but_the_student(policy: str) -> None:
    with pytest.raises(
        ValueError, match=rf"top_p=0.9 cannot be combined with rollout_policy='{policy}': .* the policy's"
    ):
        config(rollout_policy=policy, top_p=0.9)


# ---- Policies and objectives ----


def policy(**fields: Any) -> Policy:
    return config(seed=3, **fields).policy(total_steps=100)


def test_every_name_makes_its_policy_with_its_parameters() -> None:
    assert [policy(trb_warmup_steps=4, trb_epsilon=0.4).epsilon(step) for step in (0, 2, 4)] == [0.4, 0.2, 0.0]
    assert policy(rollout_policy="student").is_student(0)
    fixed = policy(rollout_policy="fixed", trb_epsilon=0.4, trb_warmup_steps=4)
    assert [fixed.epsilon(step) for step in (0, 2, 4, 99)] == [0.4] * 4
    assert policy(rollout_policy="fixed_beta", fixed_beta=0.3).beta == 0.3
    skd = policy(rollout_policy="skd", skd_top_k=15, skd_teacher_temperature=0.6)
    assert (skd.top_k, skd.teacher_temperature) == (15, 0.6)
    assert policy(rollout_policy="arithmetic", arithmetic_alpha=0.3).alpha == 0.3
    warm = policy(rollout_policy="temperature", temperature_start=0.8, temperature_warmup_steps=0.1)
    assert [warm.tau(step) for step in (0, 5, 10)] == pytest.approx([0.8, 0.9, 1.0])
    supervised = policy(rollout_policy="sft", sft_steps=15)
    assert [supervised.needs_teacher(step) for step in (14, 15)] == [True, False]
    assert policy(rollout_policy="teacher").needs_teacher(99)
    coin = policy(rollout_policy="gkd", gkd_lambda=0.3, gkd_coin="sequence")
    assert (coin.student_share, coin.per, coin.seed) == (0.3, "sequence", 3)


def test_a_policy_of_a_module_gets_its_arguments() -> None:
    name = "python_tests.rollout.test_policies:TopTokenOfTheTeacher"
    mine = policy(rollout_policy=name, rollout_policy_kwargs={"share": 0.25})
    assert mine.share == 0.25
    for name, words in (
        ("nowhere_at_all:P", "the rollout policy 'nowhere_at_all:P' could not be imported: No module named"),
        ("math:pi", "the rollout policy 'math:pi' must be callable, got float"),
        ("builtins:dict", "the rollout policy 'builtins:dict' must make a trbext.rollout.Policy, got dict"),
    ):
        with pytest.raises(ValueError, match=words):
            policy(rollout_policy=name)


def test_the_objective_of_each_step() -> None:
    assert config().objective(0, 100) == Objective()
    assert config(loss_top_k=4).objective(0, 100) == Objective("top_k", 4)
    assert config(loss_estimator="top_k").objective(0, 100) == Objective("top_k", 16)
    assert config(loss_estimator="sampled", loss_weight_cap=5.0).objective(9, 9) == Objective("sampled", None, 5.0)
    veto = config(veto_start=0.8, veto_steps=0.04)
    assert [veto.objective(step, 100).veto for step in range(6)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0, 0])
    supervised = config(rollout_policy="sft", sft_steps=2)
    assert [supervised.objective(step, 100).kind for step in range(4)] == ["cross_entropy"] * 2 + ["full"] * 2
    assert [Objective(kind).is_plain for kind in ("full", "top_k", "sampled", "cross_entropy")] == [True] + [False] * 3


def test_accepts_generation_options_that_change_nothing() -> None:
    config(generation_kwargs={"top_p": 1.0, "top_k": 0, "do_sample": True, "repetition_penalty": 1.0})
    config(min_p=0, top_k=None, top_p=None, repetition_penalty=None)
    config(generation_kwargs={"min_p": 0.0, "top_k": None, "num_beams": 1, "no_repeat_ngram_size": 0})


def test_bf16_is_the_devices_choice_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TRBConfig(output_dir="unused").bf16 is torch.cuda.is_available()
    assert TRBConfig(output_dir="unused", use_cpu=True).bf16 is False
    assert TRBConfig(output_dir="unused", use_cpu=True, bf16=True).bf16 is True
    for emulates, chosen in ((True, False), (False, True)):
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True, e=emulates: not e)
        assert device_has_bf16(use_cpu=False) is chosen
        assert device_has_bf16(use_cpu=True) is False
