"""The reported cost of a run is what its models computed, without evaluation, also after interruptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from python_tests.models.tiny_models import prompts
from python_tests.training.trainer_cases import make_trainer

COSTS = ("compute/seconds", "compute/student_tokens", "compute/teacher_tokens")


def logged(trainer: Any, step: int) -> dict[str, float]:
    return next(log for log in trainer.state.log_history if log["step"] == step and "loss" in log)


@pytest.mark.parametrize(("policy", "reuse"), [("student", True), ("trb", False), ("trb", True)])
def test_forward_tokens_are_those_of_prefill_decoding_and_loss(policy: str, reuse: bool, tmp_path: Path) -> None:
    # Three tokens: fewer than the decoder waits for before it drops rows that have ended.
    fields: dict[str, Any] = {"rollout_policy": policy, "draft_length": 0, "reuse_teacher_states": reuse}
    trainer = make_trainer(tmp_path, max_steps=1, max_completion_length=3, **fields)
    widths: list[int] = []
    inner = trainer._generate_single_turn
    trainer._generate_single_turn = lambda ids, *rest: (widths.append(max(map(len, ids))), inner(ids, *rest))[1]
    trainer.train()
    (width,) = widths
    decoding, loss = 4 * (width + 3 - 1), 4 * (width + 3)
    found = logged(trainer, 1)
    assert found["compute/student_tokens"] == decoding + loss
    of_loss = 0 if policy == "trb" and reuse else loss
    assert found["compute/teacher_tokens"] == (decoding if policy == "trb" else 0) + of_loss
    assert 0 < found["compute/seconds"] <= trainer.state.log_history[-1]["compute/seconds"]


def test_evaluation_costs_nothing_but_its_log_tells_what_training_had_cost(tmp_path: Path) -> None:
    def run(**evaluation: Any) -> Any:
        trainer = make_trainer(tmp_path, max_steps=3, draft_length=2, **evaluation)
        trainer.train()
        return trainer

    bare = run()
    evaluated = run(held_out=prompts(8), verifier=lambda *_: True, eval_strategy="steps", eval_steps=2, eval_samples=50)
    for name in COSTS[1:]:
        assert [logged(bare, step)[name] for step in (1, 2, 3)] == [logged(evaluated, step)[name] for step in (1, 2, 3)]
    of_evaluation = next(log for log in evaluated.state.log_history if "eval_loss" in log)
    assert of_evaluation["compute/teacher_tokens"] == logged(evaluated, 2)["compute/teacher_tokens"]
    spent = of_evaluation["compute/seconds"] - logged(evaluated, 2)["compute/seconds"]
    assert 0 <= spent < 0.5 * of_evaluation["eval_runtime"]


def test_a_resumed_run_continues_from_the_cost_of_its_checkpoint(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", max_steps=4, draft_length=2)
    whole.train()
    first = make_trainer(tmp_path / "run", max_steps=4, draft_length=2, save_strategy="steps", save_steps=2)
    first.train()
    resumed = make_trainer(tmp_path / "run", max_steps=4, draft_length=2, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name in COSTS[1:]:
        assert logged(resumed, 4)[name] == logged(whole, 4)[name]
    assert logged(resumed, 3)["compute/seconds"] > logged(first, 2)["compute/seconds"]
