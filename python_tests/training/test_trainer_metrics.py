"""Tests the metrics that TRBTrainer logs of its rollouts, and its evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from python_tests.models.tiny_models import END_OF_TURN, VOCABULARY, prompts, tiny_llama
from python_tests.training.trainer_cases import METRICS, make_trainer, steps, without_timings
from trbext.rollout import Rollout
from trbext.training.metrics import metric_table

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


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_held_out_prompts_are_judged_by_the_reverse_kl_whatever_is_minimized(tmp_path: Path, beta: float) -> None:
    found = [make_trainer(tmp_path, beta=each, held_out=prompts(8)).evaluate() for each in (1.0, beta)]
    assert found[1]["eval_loss"] == pytest.approx(found[0]["eval_loss"], rel=1e-5)
    assert found[1]["eval_trb/reverse_kl"] == pytest.approx(found[0]["eval_trb/reverse_kl"], rel=1e-5)


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
    assert metrics["eval_trb/reverse_kl"] == metrics["eval_loss"]
    again = trainer.evaluate()  # the same step, the same random numbers
    assert (again["eval_pass@1"], again["eval_loss"]) == (metrics["eval_pass@1"], metrics["eval_loss"])


def test_every_metric_of_the_table_is_logged(tmp_path: Path) -> None:
    evaluated: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "teacher_offload": "cpu"}
    evaluated["rollout_length_points"] = {0: 8}
    trainer = make_trainer(tmp_path, held_out=prompts(4), verifier=answers_a_digit, max_steps=1, **evaluated)
    trainer.train()
    expected = set(metric_table.METRICS) - set(metric_table.OF_ENGINES)
    assert expected <= set().union(*trainer.state.log_history)


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


@pytest.mark.parametrize("fields", [{}, {"loss_top_k": 4}])
def test_the_held_out_loss_is_a_mean_over_tokens_in_batches_of_any_size(tmp_path: Path, fields: dict[str, Any]) -> None:
    for size in (1, 2, 5):
        sets = {"few": prompts(3), "more": prompts(7)}
        trainer = make_trainer(tmp_path, held_out=sets, per_device_eval_batch_size=size, **fields)
        sums: list[tuple[float, int]] = []  # of each batch: its losses, and its tokens
        compute = trainer.compute_loss

        def recorded(model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
            result = compute(model, inputs, *given, **named)  # noqa: B023
            loss, tokens = (result[0] if isinstance(result, tuple) else result), int(inputs["completion_mask"].sum())
            sums.append((float(loss) * tokens, tokens))  # noqa: B023
            return result

        trainer.compute_loss = recorded  # type: ignore[method-assign]
        metrics = trainer.evaluate()
        batches = iter(sums)
        for name, rows in sets.items():
            of_set = [next(batches) for _ in range(-(-len(rows) // size))]
            mean = sum(total for total, _ in of_set) / sum(tokens for _, tokens in of_set)
            assert metrics[f"eval_{name}_loss"] == pytest.approx(mean, rel=1e-5)


def test_each_of_several_eval_sets_has_its_pass_at_1(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, held_out={"easy": prompts(4), "hard": prompts(5)}, verifier=answers_a_digit)
    metrics = trainer.evaluate()
    assert {"eval_easy_pass@1", "eval_hard_pass@1"} <= metrics.keys()


def test_held_out_prompts_of_which_there_are_none_are_refused(tmp_path: Path) -> None:
    none = prompts(2).select([])
    for held_out in (none, {"some": prompts(2), "none": none}):
        with pytest.raises(ValueError, match="eval_dataset must have at least one row, got 0"):
            make_trainer(tmp_path, held_out=held_out, verifier=answers_a_digit)


def test_without_a_verifier_there_is_no_pass_at_1(tmp_path: Path) -> None:
    assert "eval_pass@1" not in make_trainer(tmp_path, held_out=prompts(4)).evaluate()


def test_an_evaluation_that_was_interrupted_is_no_part_of_the_next_one(tmp_path: Path) -> None:
    ends: list[bool] = []

    def verifier(prompt: Any, completion: str, row: Mapping[str, Any]) -> bool:
        if ends:
            raise KeyboardInterrupt
        return answers_a_digit(prompt, completion, row)

    trainer = make_trainer(tmp_path, held_out=prompts(4), verifier=verifier)
    ends.append(True)
    with pytest.raises(KeyboardInterrupt):
        trainer.evaluate()
    ends.clear()
    with torch.no_grad():  # as training would change them
        trainer.model.lm_head.weight.mul_(0.5)
    found, expected = without_timings([trainer.evaluate() for _ in range(2)])
    assert "eval_trb/reverse_kl" in found
    assert found == pytest.approx(expected)
