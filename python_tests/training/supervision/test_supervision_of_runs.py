"""Trains with the losses of SAKI, TOP-D, IW-OPD and prefix distillation, and refuses what makes no sense."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.models.tiny_models import END_OF_TURN, prompts, tiny_llama
from python_tests.training.test_config import config
from python_tests.training.trainer_cases import make_trainer, steps, weights, without_timings
from trbext.rollout import Rollout
from trbext.training import loss_trainer
from trbext.training.losses import reverse_kl

# Of the budget, and what it is at the first two steps.
SCHEDULES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "constant": ({"trb_epsilon": 0.3, "trb_schedule": "constant"}, [0.3, 0.3]),
    "linear": ({"trb_epsilon": 0.3, "trb_warmup_steps": 2}, [0.3, 0.15]),
    "cosine": ({"trb_epsilon": 0.3, "trb_warmup_steps": 2, "trb_schedule": "cosine"}, [0.3, 0.15]),
    "piecewise": ({"trb_schedule": "piecewise", "trb_schedule_points": {"0": 0.3, "1": 0.0}}, [0.3, 0.0]),
}


def scored(trainer: Any, rollout: Rollout, prompt_ids: list[list[int]], models: list[Any]) -> list[Tensor]:
    """Returns the aligned log-probs [N, V] of each model at the prefixes of a rollout, without padding or cache."""
    rows: list[list[Tensor]] = [[] for _ in models]
    for prompt, tokens, mask in zip(prompt_ids, rollout.tokens, rollout.mask, strict=True):
        ids = torch.cat([torch.tensor(prompt), tokens[mask]])
        for part, model in zip(rows, models, strict=True):
            with torch.no_grad():
                logits = model(ids[None]).logits[0, len(prompt) - 1 : -1]
            part.append(trainer.alignment.canonical(logits, 1.0).log_softmax(-1))
    return [torch.cat(part) for part in rows]


def first_step(tmp_path: Path, drawn: list[Rollout], **fields: Any) -> tuple[Any, Rollout, list[Tensor]]:
    """Trains one step, and returns the trainer, its rollout, and log pi_S and log pi_T [N, V] at its prefixes."""
    teacher = tiny_llama(1, hidden=32, eos=END_OF_TURN)  # other EOS ids, so that the teacher's tokens are merged
    trainer = make_trainer(tmp_path, None, teacher, max_steps=1, **fields)
    before = [copy.deepcopy(trainer.model), copy.deepcopy(teacher)]
    asked: list[list[list[int]]] = []
    generate = trainer._generate_single_turn
    trainer._generate_single_turn = lambda ids, *rest: (asked.append(ids), generate(ids, *rest))[1]
    trainer.train()
    (rollout,) = drawn
    return trainer, rollout, scored(trainer, rollout, asked[0], before)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("draft_length", [0, 3])
def test_the_routed_loss_of_a_step_is_that_of_its_labels(
    tmp_path: Path, drawn: list[Rollout], draft_length: int, weighted: bool
) -> None:
    trainer, rollout, (student, teacher) = first_step(
        tmp_path,
        drawn,
        loss_estimator="routed",
        loss_weighted=weighted,
        trb_epsilon=0.5,
        draft_length=draft_length,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=8,
    )
    mask = rollout.mask
    token, accepted = rollout.tokens[mask][:, None], rollout.accepted[mask]
    assert 0.05 < float((~accepted).float().mean()) < 0.9
    weight = (rollout.student_log_prob - rollout.log_prob)[mask].exp().clamp(min=1.0) if weighted else 1.0
    ratio = (student - teacher).gather(1, token)[:, 0]
    surprise = -student.gather(1, teacher.argmax(1, keepdim=True))[:, 0]
    expected = torch.where(accepted, weight * ratio, surprise).mean().item()
    assert steps(trainer)[0]["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_routed_loss_trains_by_each_schedule_of_the_budget(
    tmp_path: Path, name: str, rollouts: list[tuple[float, Rollout]]
) -> None:
    fields, budgets = SCHEDULES[name]
    trainer = make_trainer(tmp_path, loss_estimator="routed", loss_weighted=False, loss_log_ratio_cap=10.0, **fields)
    trainer.train()
    assert [budget for budget, _ in rollouts] == pytest.approx(budgets)
    for budget, rollout in rollouts:
        assert bool(rollout.replaced.any()) == (budget > 0)


def test_at_a_budget_of_zero_the_routed_loss_is_the_sampled_one(tmp_path: Path) -> None:
    found = []
    for estimator in ("sampled", "routed"):
        trainer = make_trainer(tmp_path / estimator, loss_estimator=estimator, trb_epsilon=0.0, max_steps=3)
        trainer.train()
        found.append([(log["loss"], log["grad_norm"]) for log in steps(trainer)])
    assert found[0] == [pytest.approx(pair, rel=1e-4) for pair in found[1]]


def test_a_resumed_routed_run_repeats_the_uninterrupted_run_bitwise(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"loss_estimator": "routed", "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    straight = make_trainer(tmp_path / "straight", **fields)
    straight.train()
    resumed = make_trainer(tmp_path / "resumed", **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-1"))
    assert without_timings(resumed.state.log_history)[:-1] == without_timings(straight.state.log_history)[:-1]
    assert all(torch.equal(weights(resumed)[key], value) for key, value in weights(straight).items())


@pytest.mark.parametrize("estimator", ["full", "sampled"])
def test_the_loss_toward_the_proximal_teacher_is_that_of_the_mixture(
    tmp_path: Path, drawn: list[Rollout], estimator: str
) -> None:
    trainer, rollout, (student, teacher) = first_step(
        tmp_path, drawn, loss_estimator=estimator, proximal_alpha=0.3, trb_epsilon=0.5
    )
    mixture = torch.logaddexp(teacher + torch.tensor(0.3).log(), student + torch.tensor(0.7).log())
    gap = student - mixture
    if estimator == "full":
        expected = reverse_kl(student, mixture).mean()
    else:
        weight = (rollout.student_log_prob - rollout.log_prob)[rollout.mask].exp()
        expected = (weight * gap.gather(1, rollout.tokens[rollout.mask][:, None])[:, 0]).mean()
    log = steps(trainer)[0]
    assert log["loss"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    full = reverse_kl(student, teacher).mean().item()
    assert log["trb/reverse_kl"] == pytest.approx(full, rel=1e-4)  # is logged whatever is minimized


def test_position_weights_multiply_the_reverse_kl_of_each_prefix(tmp_path: Path, drawn: list[Rollout]) -> None:
    trainer, rollout, (student, teacher) = first_step(
        tmp_path, drawn, position_gamma=0.8, rollout_policy="student", gradient_accumulation_steps=1
    )
    kl = reverse_kl(student, teacher)
    discrepancy = (teacher - student).gather(1, rollout.tokens[rollout.mask][:, None])[:, 0].abs()
    expected, start = [], 0
    for length in rollout.lengths.tolist():
        part = discrepancy[start : start + length]
        before = part.cumsum(0) - part
        expected.append(kl[start : start + length] * (1 + 0.8 * (1 - before / part.sum())))
        start += length
    log = steps(trainer)[0]
    assert log["loss"] == pytest.approx(torch.cat(expected).mean().item(), rel=1e-4)
    assert log["trb/reverse_kl"] == pytest.approx(kl.mean().item(), rel=1e-4)


@pytest.mark.parametrize("reuse", [True, False])
def test_prefix_distillation_takes_the_loss_at_the_first_tokens_and_shows_the_models_no_others(
    tmp_path: Path, drawn: list[Rollout], reuse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    loss = loss_trainer.prefix_loss

    def recording(*args: Any, **kwargs: Any) -> Any:
        widths.append(args[0].shape[1])  # prefixes of which the student's states were computed
        return loss(*args, **kwargs)

    monkeypatch.setattr(loss_trainer, "prefix_loss", recording)
    fields: dict[str, Any] = {"reuse_teacher_states": reuse, "held_out": prompts(4), "gradient_accumulation_steps": 2}
    trainer, rollout, (student, teacher) = first_step(tmp_path, drawn, loss_prefix_tokens=3, **fields)
    place = rollout.mask.long().cumsum(1)[rollout.mask] - 1
    assert int(rollout.lengths.min()) < 4 < int(rollout.lengths.max())
    expected = reverse_kl(student, teacher)[place < 3].mean().item()
    assert steps(trainer)[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert set(widths) == {3}
    widths.clear()
    trainer.evaluate()  # of all tokens
    assert set(widths) == {drawn[-1].tokens.shape[1]} == {8}


WRONG = [
    (
        {"loss_estimator": "routed", "rollout_policy": "student"},
        "needs a policy by which the teacher .*='student'",
    ),
    ({"loss_estimator": "routed", "rollout_policy": "temperature"}, "got rollout_policy='temperature'"),
    ({"loss_estimator": "routed", "rollout_policy": "sft"}, "got rollout_policy='sft': use loss_estimator 'sampled'"),
    ({"loss_estimator": "routed", "veto_start": 0.4}, "veto_start=0.4 changes the reverse KL .* leave veto_start out"),
    ({"loss_estimator": "routed", "proximal_alpha": 0.4}, "proximal_alpha=0.4 changes .* leave proximal_alpha out"),
    ({"loss_estimator": "routed", "position_gamma": 0.5}, "position_gamma=0.5 changes .* leave position_gamma out"),
    ({"loss_estimator": "routed", "beta": 0.5}, "loss_estimator='routed' is of the reverse KL"),
    ({"loss_estimator": "routed", "loss_top_k": 4}, "loss_top_k belongs to loss_estimator 'top_k', got 'routed'"),
    ({"loss_weighted": False}, "loss_weighted belongs to loss_estimator 'sampled' or 'routed', got .*'full'"),
    (
        {"loss_estimator": "sampled", "loss_weighted": False, "loss_weight_cap": 2.0},
        "loss_weight_cap=2.0 cuts weights, and loss_weighted=False has none",
    ),
    ({"proximal_alpha": 0.0}, "proximal_alpha must be a share with 0 < proximal_alpha <= 1, got 0.0"),
    ({"proximal_alpha": 0.5, "veto_start": 0.4}, "proximal_alpha=0.5 and veto_start=0.4 both replace the teacher"),
    ({"proximal_alpha": 0.5, "beta": 0.0}, "proximal_alpha=0.5 is of the reverse KL, .* got beta = 0.0"),
    ({"position_gamma": 0.5, "beta": 0.0}, "position_gamma=0.5 is of the reverse KL, .* got beta = 0.0"),
    ({"position_gamma": -0.5}, "position_gamma must be a finite number >= 0, got -0.5"),
    ({"loss_prefix_tokens": 0}, "loss_prefix_tokens must be a whole number of at least 1, got 0"),
    ({"loss_log_ratio_cap": 10.0}, "loss_log_ratio_cap belongs to loss_estimator 'sampled' or 'routed', got .*'full'"),
    ({"loss_estimator": "sampled", "loss_log_ratio_cap": 0.0}, "loss_log_ratio_cap must be a number .* got 0.0"),
]
SERVED = {"teacher_url": "http://localhost:1", "teacher_model_name_or_path": "some/teacher"}
ENGINE = {"use_vllm": True, "teacher_from_engine": True, "loss_top_k": 4}


@pytest.mark.parametrize(("fields", "words"), WRONG, ids=str)
def test_what_makes_no_sense_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**fields)


@pytest.mark.parametrize("where", [SERVED, ENGINE], ids=["server", "engine"])
def test_a_teacher_of_which_the_top_tokens_are_known_has_no_mixture_and_no_weights(where: dict[str, Any]) -> None:
    for fields in ({"proximal_alpha": 0.5}, {"position_gamma": 0.5}):
        with pytest.raises(ValueError, match=rf"whole distribution.*, got {next(iter(fields))}=0\.5"):
            config(**where, **fields)
    config(**where, loss_prefix_tokens=4)
