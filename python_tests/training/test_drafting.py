"""Tests speculation in the trainer: teacher states reused by the loss, the draft length over checkpoints, the
metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from python_tests.models.tiny_models import tiny_llama
from python_tests.training.trainer_cases import make_trainer, steps, weights
from trbext.rollout import DraftLength, Rollout, TrustRegion
from trbext.training.config import TRBConfig
from trbext.training.generation import Generation
from trbext.training.trainer import TRBTrainer


def backbone_widths(trainer: TRBTrainer) -> list[int]:
    """Returns a list that grows by the tokens of each forward of the teacher's backbone."""
    widths: list[int] = []
    trainer.teacher_model.base_model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return widths


@pytest.mark.parametrize("fields", [{"draft_length": 3}, {"draft_length": 0}, {"draft_length": 3, "loss_top_k": 4}])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_of_reused_states_is_that_of_a_teacher_forward(
    tmp_path: Path, fields: dict[str, Any], accumulation: int
) -> None:
    # Adam would turn the rounding of a gradient near 0 into a step of the whole learning rate.
    settings = {**fields, "gradient_accumulation_steps": accumulation, "rollout_batch_size": 3, "optim": "sgd"}
    reusing, asking = (
        make_trainer(
            tmp_path, tiny_llama(0), tiny_llama(1, hidden=32, layers=2), reuse_teacher_states=reuse, **settings
        )
        for reuse in (True, False)
    )
    passes = {trainer: backbone_widths(trainer) for trainer in (reusing, asking)}
    for trainer in (reusing, asking):
        trainer.train()
    for one, two in zip(steps(reusing), steps(asking), strict=True):
        for name in ("loss", "trb/reverse_kl", "trb/teacher_entropy", "trb/teacher_log_prob", "grad_norm"):
            assert one[name] == pytest.approx(two[name], rel=1e-5, abs=1e-5), name
        assert one["trb/teacher_states_gib"] > 0
        assert two["trb/teacher_states_gib"] == 0
    for name, weight in weights(asking).items():
        assert (weights(reusing)[name] - weight).abs().max() < 1e-6, name
    # The loss reads whole sequences, one micro-batch at a time; decoding reads only prompts and drafts.
    assert len(passes[asking]) == len(passes[reusing]) + 2 * accumulation


def test_states_beyond_their_memory_are_computed_again(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"draft_length": 2, "teacher_states_gib": 1e-7}
    trainer = make_trainer(tmp_path, **fields)
    usual = make_trainer(tmp_path, draft_length=2, reuse_teacher_states=False)
    for each in (trainer, usual):
        each.train()
    assert [log["trb/teacher_states_gib"] for log in steps(trainer)] == [0, 0]
    assert [log["loss"] for log in steps(trainer)] == [log["loss"] for log in steps(usual)]


def test_acceptance_and_teacher_passes_are_logged(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, draft_length=4, max_steps=4)
    trainer.train()
    logs = steps(trainer)
    for log in logs[:3]:
        assert 0.5 < log["trb/acceptance"] <= 1
        assert 1 <= log["trb/tokens_per_teacher_pass"] <= 4
    assert "trb/acceptance" not in logs[3]  # no budget is left
    in_lockstep = make_trainer(tmp_path, draft_length=0)
    in_lockstep.train()
    assert "trb/acceptance" not in steps(in_lockstep)[0]


def test_costs_are_measured_in_the_first_step_and_go_into_the_checkpoints(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "draft_length": "auto",
        "save_strategy": "steps",
        "save_steps": 1,
        "trb_warmup_steps": 10,
    }
    trainer = make_trainer(tmp_path, **fields)
    trainer.train()
    kept = trainer.drafting.draft_length
    assert isinstance(kept, DraftLength)
    assert kept.frozen
    saved = [
        json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())["stateful_callbacks"]
        for step in (1, 2)
    ]
    assert saved[0]["Drafting"] == saved[1]["Drafting"]
    resumed = make_trainer(tmp_path, max_steps=3, **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert isinstance(resumed.drafting.draft_length, DraftLength)
    assert resumed.drafting.draft_length.state() == kept.state()


def rollout(rows: int, tokens: int, states: bool) -> Rollout:
    zeros = torch.zeros(rows, tokens)
    kept = torch.full((rows, tokens, 2), float(rows)) if states else None
    return Rollout(zeros.long(), zeros.bool(), zeros, zeros, zeros, zeros, zeros, zeros[:, 0].bool(), kept)


def test_states_of_the_parts_of_a_batch_are_joined_and_incomplete_ones_are_not() -> None:
    accelerator, completions = Accelerator(), torch.zeros(3, 6)

    def teacher_states(*rollouts: Rollout) -> Tensor | None:
        return Generation(list(rollouts)).take_teacher_states(completions, accelerator)

    joined = teacher_states(rollout(1, 4, True), rollout(2, 5, True))
    assert joined is not None
    assert joined[..., 0].tolist() == [[1.0] * 4 + [0.0] * 2] + [[2.0] * 5 + [0.0]] * 2
    assert teacher_states(rollout(1, 4, True), rollout(2, 5, False)) is None
    assert teacher_states(rollout(3, 4, True), rollout(3, 5, True)) is None  # two turns
    assert teacher_states() is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"draft_length": -1}, "draft_length must be 'auto', 0 for lockstep, or a number of drafts k >= 1, got -1"),
        ({"draft_length": "often"}, "draft_length must be 'auto', .*, got 'often'"),
        ({"teacher_states_gib": -1.0}, "teacher_states_gib is a size in GiB and must be >= 0, got -1.0"),
    ],
)
def test_fields_out_of_range_are_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TRBConfig(str(tmp_path), use_cpu=True, bf16=False, **fields)


def test_a_fixed_budget_is_speculated_on_as_well(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, policy=TrustRegion(0.1), draft_length=3, trb_epsilon=0.0)
    trainer.train()
    assert all("trb/acceptance" in log for log in steps(trainer))
