"""Tests the length of the rollouts: the adaptive rule by hand, plans and adaptive runs, resume, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from python_tests.models.tiny_models import prompts
from python_tests.training.test_config import config
from python_tests.training.trainer_cases import make_trainer, steps, weights, without_timings
from trbext.rollout import Rollout
from trbext.training.rollout_length import RolloutLength

HERE: Any = SimpleNamespace(reduce=lambda tensor, reduction: tensor)  # an accelerator of one process
ADAPTIVE: dict[str, Any] = {
    "max_completion_length": 20,
    "rollout_length_start": 4,
    "rollout_length_window": 2,
    "rollout_length_plateau": 0.25,
}


def after(signals: list[float], shares: list[float] | None = None, **fields: Any) -> list[int]:
    """Returns the length after each step of which the tokens near the end have this mean of log pi_T, and of which a
    share of the rollouts is as long as they may be."""
    length = RolloutLength(config(**ADAPTIVE | fields))
    found = []
    for signal, share in zip(signals, shares or [1.0] * len(signals), strict=True):
        now = length.at(0)
        valid = torch.ones(8, now, dtype=torch.bool)
        valid[round(8 * share) :, now - 1] = False
        log_prob = torch.full(valid.shape, -99.0)
        log_prob[:, math.floor(0.75 * now) :] = signal
        length.add(log_prob[valid], valid, HERE)
        length.on_step_end(None, TrainerState(), TrainerControl())
        found.append(length.at(0))
    return found


def test_the_limit_grows_when_the_last_window_brought_a_small_share_of_the_progress() -> None:
    # entry -4; then -3, -2 and -1.5: 1 of 1, 1 of 2, 0.5 of 2.5, the first at most a quarter
    signals = [-4, -4, -3, -3, -2, -2, -1.5, -1.5]
    assert after(signals) == [4] * 7 + [8]
    # The same again from a new entry, with no regard to the old one; then up to the limit and no further.
    again = [-9, -9, -8, -8, -7.9, -7.9]
    assert after(signals + again + again) == [4] * 7 + [8] * 6 + [16] * 6 + [20]
    assert after(signals + again + again + again)[-1] == 20


def test_without_any_progress_it_grows_and_while_there_is_progress_it_does_not() -> None:
    assert after([-4] * 6) == [4] * 5 + [8]
    assert after([-4, -4, -5, -5, -6, -6]) == [4] * 5 + [8]
    assert after([-4 + 0.3 * step for step in range(8)]) == [4] * 8


def test_a_few_long_rollouts_do_not_make_it_grow() -> None:
    assert after([-4] * 8, [0.25] * 8) == [4] * 8
    assert after([-4] * 8, [0.25] * 5 + [0.75] * 3) == [4] * 5 + [8] * 3  # 0.5 in a window of two
    assert after([-4] * 8, [0.25] * 8, rollout_length_use=0.25)[5] == 8


def test_steps_without_a_token_near_the_end_and_excluded_tokens_decide_nothing() -> None:
    length = RolloutLength(config(**ADAPTIVE))
    for _ in range(9):
        short = torch.ones(8, 2, dtype=torch.bool)
        length.add(torch.zeros(16), short, HERE)
        length.on_step_end(None, TrainerState(), TrainerControl())
    assert length.at(0) == 4
    assert all(math.isnan(signal) and share == 0 for signal, share in length.state()["attributes"]["seen"])
    length.add(torch.tensor([0.0, 0.0, 0.0, -torch.inf, 0.0, 0.0, 0.0, -3.0]), torch.ones(2, 4, dtype=torch.bool), HERE)
    length.on_step_end(None, TrainerState(), TrainerControl())
    assert length.state()["attributes"]["seen"][-1] == [-3.0, 1.0]


def test_a_step_of_short_rollouts_at_the_start_does_not_keep_it_from_growing() -> None:
    length = RolloutLength(config(**ADAPTIVE))
    found = []
    for step in range(8):
        valid = torch.ones(8, 2 if step in (0, 3) else 4, dtype=torch.bool)
        length.add(torch.full((valid.numel(),), -4.0), valid, HERE)
        length.on_step_end(None, TrainerState(), TrainerControl())
        found.append(length.at(0))
    assert found == [4] * 6 + [8] * 2


def test_a_plan_holds_each_length_up_to_the_next(tmp_path: Path, drawn: list[Rollout]) -> None:
    trainer = make_trainer(
        tmp_path, rollout_length_points={"0": 2, "2": 5}, max_steps=4, held_out=prompts(4), rollout_policy="student"
    )
    trainer.train()
    assert [rollout.tokens.shape[1] for rollout in drawn] == [2, 2, 5, 5]
    assert [log["trb/rollout_length"] for log in steps(trainer)] == [2, 2, 5, 5]
    assert [log["completions/max_length"] for log in steps(trainer)] == [2, 2, 5, 5]
    trainer.evaluate()
    assert drawn[-1].tokens.shape[1] == 8
    plain = make_trainer(tmp_path / "plain", max_steps=1)
    plain.train()
    assert "trb/rollout_length" not in steps(plain)[0]


@pytest.mark.parametrize("fields", [{}, {"loss_estimator": "sampled"}])
def test_an_adaptive_run_grows_and_a_resumed_one_repeats_it_bitwise(
    tmp_path: Path, fields: dict[str, Any], drawn: list[Rollout]
) -> None:
    adaptive: dict[str, Any] = {
        **fields,
        "rollout_length_start": 3,
        "rollout_length_window": 1,
        "rollout_length_plateau": 0.9,
        "rollout_length_use": 0.1,
        "gradient_accumulation_steps": 2,
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    straight = make_trainer(tmp_path / "straight", **adaptive)
    straight.train()
    lengths = [log["trb/rollout_length"] for log in steps(straight)]
    assert lengths[0] == 3
    assert lengths[-1] > 3
    assert all(rollout.tokens.shape[1] <= length for rollout, length in zip(drawn, lengths, strict=True))
    resumed = make_trainer(tmp_path / "resumed", **adaptive)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    assert without_timings(resumed.state.log_history)[:-1] == without_timings(straight.state.log_history)[:-1]
    assert all(torch.equal(weights(resumed)[key], value) for key, value in weights(straight).items())


WRONG = [
    ({"rollout_length_points": "8"}, "rollout_length_points must be a mapping such as .* got '8'"),
    (
        {"rollout_length_points": {0: 0}},
        "must map optimizer steps to 1 up to .* = 256 tokens, got 0: 0",
    ),
    ({"rollout_length_points": {0: 300}}, "max_completion_length = 256 tokens, got 0: 300"),
    ({"rollout_length_points": {0.5: 3}}, "must map optimizer steps to .* got 0.5: 3"),
    ({"rollout_length_points": {4: 8}}, "rollout_length_points must begin at step 0, got 4"),
    ({"rollout_length_start": 256}, "must be below max_completion_length = 256, got 256"),
    ({"rollout_length_start": 8, "rollout_length_points": {0: 8}}, "is a fixed plan, and rollout_length_start adapts"),
    ({"rollout_length_start": 8, "loss_prefix_tokens": 4}, "which loss_prefix_tokens=4 cuts off"),
    ({"rollout_length_growth": 1.0}, "rollout_length_growth must be a number > 1, and finite, got 1.0"),
    ({"rollout_length_growth": math.inf}, "rollout_length_growth must be a number > 1, and finite, got inf"),
    ({"rollout_length_window": 0}, "rollout_length_window must be a whole number of at least 1, got 0"),
    ({"rollout_length_plateau": 1.0}, "rollout_length_plateau must be a share .* got 1.0"),
    ({"rollout_length_use": 0.0}, "rollout_length_use must be a share .* got 0.0"),
    (
        {"rollout_length_points": {0: 8}, "rollout_policy": "student", "top_k": 5},
        "rollout_length_points is of rollouts that trbext decodes, and top_k=5 leaves them to TRL",
    ),
]


@pytest.mark.parametrize(("fields", "words"), WRONG, ids=str)
def test_lengths_that_make_no_sense_are_refused_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(max_completion_length=256, **fields)
