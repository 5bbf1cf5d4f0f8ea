"""The parts of a run: its checks, its metrics, what its agent loops must leave whole, and what it resumes with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from trbext.training.schedule import Schedule
from trbext.verl.answers import TokenFacts, check_whole
from trbext.verl.checkpoint_record import CheckpointRecord
from trbext.verl.metrics import rollout_metrics, take_actor_metrics
from trbext.verl.rollouts import Mailbox
from trbext.verl.settings import RolloutSettings

FACTS = [
    TokenFacts(0.2, [5, 2], np.array([[0, 1], [0.1, 0.2], [-1, -1], [-2, -4]], np.float32), 1),
    TokenFacts(0.2, [6], np.array([[0.5], [0.0], [-1], [-3]], np.float32), 0),
]


def test_metrics_are_means_over_all_tokens() -> None:
    counters = [{"tokens": 6, "accepted": 3, "row_passes": 2}, {"tokens": 4, "accepted": 4, "row_passes": 3}]
    found = rollout_metrics(FACTS, counters)
    expected = {
        "trb/epsilon": 0.2,
        "trb/kl": 0.1,
        "trb/kl_max": 0.2,
        "trb/kl_budget_used": 0.5,
        "trb/beta_mean": 0.5,
        "trb/beta_one_fraction": 1 / 3,
        "trb/beta_zero_fraction": 1 / 3,
        "trb/teacher_log_prob": -3.0,
        "trb/acceptance": 0.7,
        "trb/tokens_per_teacher_pass": 0.6,  # of the rollouts, not of what was cut off them
        "trb/repaired_rows": 1.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_rollouts_of_unlike_budgets_are_not_of_one_step() -> None:
    other = TokenFacts(0.1, [6], FACTS[1].values, 0)
    with pytest.raises(RuntimeError, match=r"one budget, got \[0.1, 0.2\]"):
        rollout_metrics([*FACTS, other], [])


def test_what_actors_have_summed_up_becomes_means() -> None:
    metrics = {"actor/trb/reverse_kl_sum": 6.0, "actor/trb/prefixes": 4.0, "actor/loss": 1.0}
    assert take_actor_metrics(metrics) == {"trb/reverse_kl": 1.5}
    assert metrics == {"actor/loss": 1.0}


def test_an_agent_loop_must_leave_its_one_answer_whole() -> None:
    rows = torch.zeros(4, 3)
    fields = [{"trb": vars(facts)} for facts in FACTS]
    assert check_whole({**fields[0], "teacher_ids": rows}, [1, 2], [5, 2]) == FACTS[0]
    for given, message in (
        ({}, "the rollout knows none"),
        (fields[1], "completion of 2 tokens the rollout knows 1 tokens of its last turn"),
        ({**fields[0], "teacher_ids": rows[:3]}, "rows must be 4 like the tokens, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            check_whole(given, [1, 2], [5, 2])


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"epsilon": "abc", "warmup_steps": 3}, "epsilon must be a KL budget in nats, .* got abc"),
        ({"epsilon": 0.1, "warmup_steps": 2.5}, "warmup_steps must be an int, .* got 2.5"),
        ({"epsilon": 0.1, "schedule": "piecewise", "points": 5}, "points must be pairs .* got 5"),
        ({"epsilon": 0.1, "schedule": "piecewise", "points": [3]}, "points must be pairs .* got 3"),
        ({"epsilon": 0.1, "schedule": "piecewise", "points": [["a", 0.1]]}, "points must be pairs .* got"),
        ({"epsilon": 0.1, "schedule": 5}, "the schedule must be one of linear, .* got 5"),
    ],
    ids=str,
)
def test_a_schedule_that_cannot_be_made_is_named_with_where_it_is_said(said: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=rf"^actor_rollout_ref\.rollout\.custom\.trb: {words}"):
        RolloutSettings.of({"trb": {"teacher": "T", **said}})


def test_a_constant_schedule_needs_no_warmup() -> None:
    settings = RolloutSettings.of(
        {"trb": {"teacher": "T", "epsilon": 0.1, "schedule": "constant", "warmup_steps": None}}
    )
    assert settings.schedule(99) == 0.1


def test_a_resumed_run_must_have_its_schedule_and_its_teacher(tmp_path: Path) -> None:
    settings = RolloutSettings("T", Schedule("piecewise", points=((0, 0.5), (3, 0.0))))
    record = CheckpointRecord.of(settings, ["a", "b"])
    record.write(str(tmp_path / "global_step_3"))
    read = CheckpointRecord.read(str(tmp_path / "global_step_3"))
    read.check(record)
    read.check(CheckpointRecord.of(settings, ["c"]))  # other parts, on another number of workers
    with pytest.raises(ValueError, match="must have the teacher that it had, T, got other weights"):
        read.check(CheckpointRecord.of(settings, ["a", "c"]))
    with pytest.raises(ValueError, match="must have the schedule"):
        read.check(CheckpointRecord.of(RolloutSettings("T", Schedule(epsilon=0.5)), ["a", "b"]))
    with pytest.raises(ValueError, match=r"got none with trb\.json"):
        CheckpointRecord.read(str(tmp_path))


def records_of(keys: list[int]) -> dict[str, Any]:
    """Records of tokens of these requests, of the teacher's of the first, and of a fault in the last."""
    return {
        "key": np.array(keys),
        "index": np.arange(len(keys)),
        "teacher_log_prob": -np.arange(len(keys), dtype=np.float32),
        "teacher_key": np.array(keys[:1]),
        "teacher_index": np.array([9]),
        "fault_key": np.array(keys[-1:]),
        "fault_index": np.array([8]),
    }


def test_a_mailbox_keeps_the_records_of_open_requests_apart() -> None:
    mailbox = Mailbox()
    first, second, closed = mailbox.expect(), mailbox.expect(), mailbox.expect()
    assert mailbox.close(closed) == []
    mailbox.put([records_of([first, closed, second, first]), records_of([second])])
    mine = mailbox.close(first)
    assert [records["index"].tolist() for records in mine] == [[0, 3]]
    assert [records["teacher_log_prob"].tolist() for records in mine] == [[0, -3]]
    assert [records["teacher_index"].tolist() for records in mine] == [[9]]
    assert [records["fault_key"].tolist() for records in mine] == [[0]]
    assert [records["fault_index"].tolist() for records in mine] == [[8]]
    theirs = mailbox.close(second)
    assert [records["index"].tolist() for records in theirs] == [[2], [0]]
    assert {tuple(records["key"]) for records in theirs} == {(0,)}
    assert mailbox.close(first) == []


def test_a_trainer_s_config_is_checked_before_anything_starts() -> None:
    from trbext.verl.run_checks import check_run

    assert check_run(run_config()).schedule(2) == pytest.approx(0.05)
    for changed, value, message in (
        ("actor_rollout_ref.rollout.name", "vllm", "rollout.name must be trb_vllm for TRB, got vllm"),
        ("distillation.distillation_loss.use_task_rewards", True, "use_task_rewards must be False for TRB, got True"),
        ("distillation.distillation_loss.loss_max_clamp", 10.0, "loss_max_clamp must be None for TRB, got 10.0"),
        ("distillation.distillation_loss.topk", 8, "top_k must be .*topk, at least 1, got 16 and 8"),
        ("distillation.nnodes", 1, "top_k must be 0 with a teacher pool"),
        ("actor_rollout_ref.actor.strategy", "megatron", "strategy must be fsdp, fsdp2, veomni for TRB, got megatron"),
        ("actor_rollout_ref.rollout.top_k", 5, "rollout.top_k must be -1 for TRB, got 5"),
        ("actor_rollout_ref.rollout.val_kwargs.temperature", 0, "val_kwargs.temperature: .* at least 0.01, got 0"),
        ("actor_rollout_ref.rollout.val_kwargs.top_k", 5, "val_kwargs.top_k must be -1 for TRB, got 5"),
        ("actor_rollout_ref.rollout.val_kwargs.top_p", 0.7, "val_kwargs.top_p must be 1.0 for TRB, got 0.7"),
        ("actor_rollout_ref.rollout.custom.trb.teacher", "U", "must be the teacher of .*, T, got U"),
    ):
        config = run_config()
        *path, name = changed.split(".")
        at: Any = config
        for part in path:
            at = at[part] if isinstance(at, dict) else getattr(at, part)
        if isinstance(at, dict):
            at[name] = value
        else:
            setattr(at, name, value)
        with pytest.raises(ValueError, match=message):
            check_run(config)


def run_config() -> Any:
    """verl's configuration of a run with TRB, as far as it is checked."""
    loss = SimpleNamespace(
        loss_mode="trb_reverse_kl", use_policy_gradient=False, use_task_rewards=False, log_prob_min_clamp=None,
        loss_max_clamp=None, topk=16,
    )  # fmt: skip
    rollout = SimpleNamespace(
        name="trb_vllm", top_p=1.0, top_k=-1, temperature=1.0,
        val_kwargs=SimpleNamespace(temperature=1.0, top_p=1.0, top_k=-1),
        agent=SimpleNamespace(agent_loop_manager_class="trbext.verl.agent_loop.TRBAgentLoopManager"),
        multi_turn=SimpleNamespace(enable=False),
        custom={"trb": {"teacher": "T", "epsilon": 0.1, "warmup_steps": 4}},
    )  # fmt: skip
    return SimpleNamespace(
        trainer=SimpleNamespace(val_before_train=False, test_freq=5),
        distillation=SimpleNamespace(
            enabled=True, distillation_loss=loss, nnodes=0, n_gpus_per_node=8,
            teacher_models={"teacher_model": SimpleNamespace(model_path="T")},
        ),
        actor_rollout_ref=SimpleNamespace(
            rollout=rollout, hybrid_engine=True, actor=SimpleNamespace(strategy="fsdp2"),
            model=SimpleNamespace(use_fused_kernels=False),
        ),
    )  # fmt: skip
