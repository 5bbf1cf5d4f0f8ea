"""TRBTrainer continues from a checkpoint exactly, or refuses and names what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from python_tests.models.tiny_models import prompts
from python_tests.training.trainer_cases import make_trainer, steps, weights, without_timings
from trbext.training.checkpoints.completeness import IncompleteCheckpoint, check_checkpoint
from trbext.training.trainer import TRBTrainer

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "draft_length": 3}


def asked(trainer: TRBTrainer) -> list[list[str]]:
    """Returns a list that grows by the prompts of each optimizer step."""
    batches: list[list[str]] = []
    generate = trainer._generate
    trainer._generate = lambda texts: (trainer.model.training and batches.append(texts), generate(texts))[1]
    return batches


def same_weights(one: TRBTrainer, two: TRBTrainer) -> bool:
    return all(torch.equal(weight, weights(two)[name]) for name, weight in weights(one).items())


def test_a_checkpoint_of_the_last_step_trains_nothing(tmp_path: Path) -> None:
    straight = make_trainer(tmp_path, rows=8, max_steps=3, **SAVING)
    straight.train()
    resumed = make_trainer(tmp_path / "resumed", rows=8, max_steps=3, **SAVING)
    batches = asked(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert batches == []
    assert resumed.state.global_step == 3
    assert same_weights(resumed, straight)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of the checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp("checkpoints")
    make_trainer(folder, **SAVING).train()
    return folder


@pytest.mark.parametrize(
    ("name", "cut", "fault"),
    [
        ("optimizer.pt", False, "optimizer.pt, the optimizer state, is missing; delete checkpoint-2"),
        ("scheduler.pt", False, "scheduler.pt, the learning rate schedule, is missing"),
        ("rng_state.pth", False, "rng_state.pth, the random state, is missing"),
        ("model.safetensors", False, "its weights, model.safetensors, are missing"),
        ("model.safetensors", True, "model.safetensors was cut short"),
        ("optimizer.pt", True, "optimizer.pt was cut short"),
        ("rng_state.pth", True, "rng_state.pth was cut short"),
        ("trainer_state.json", True, "trainer_state.json was cut short"),
    ],
)
def test_an_incomplete_checkpoint_is_refused_by_its_file_and_the_older_one_offered(
    tmp_path: Path, checkpoints: Path, name: str, cut: bool, fault: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(checkpoints, folder)
    file = folder / "checkpoint-2" / name
    if cut:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    trainer = make_trainer(folder, max_steps=3, **SAVING)
    with pytest.raises(IncompleteCheckpoint, match="continue from checkpoint-1") as refusal:
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert fault in str(refusal.value)


def written_by(processes: int, checkpoints: Path, folder: Path) -> Path:
    """Returns a checkpoint as so many processes would have written it."""
    checkpoint = folder / "checkpoint-2"
    shutil.copytree(checkpoints / "checkpoint-2", checkpoint)
    random_state = (checkpoint / "rng_state.pth").rename(folder / "random state")
    for number in range(processes):
        shutil.copy(random_state, checkpoint / ("rng_state.pth" if processes == 1 else f"rng_state_{number}.pth"))
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["stateful_callbacks"]["ComputeCount"]["attributes"]["processes"] == 1
    state["stateful_callbacks"]["ComputeCount"]["attributes"]["processes"] = processes
    (checkpoint / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    return checkpoint


@pytest.mark.parametrize(("wrote", "continues"), [(2, 4), (4, 2), (3, 2), (1, 2), (2, 1)])
def test_another_number_of_processes_does_not_miss_its_random_states(
    tmp_path: Path, checkpoints: Path, wrote: int, continues: int
) -> None:
    checkpoint = written_by(wrote, checkpoints, tmp_path)
    for process in range(continues):
        check_checkpoint(checkpoint, continues, process, sharded=False)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_random_state_of_the_same_processes_is_missed(tmp_path: Path, checkpoints: Path, lost: int) -> None:
    checkpoint = written_by(3, checkpoints, tmp_path)
    (checkpoint / f"rng_state_{lost}.pth").unlink()
    with pytest.raises(IncompleteCheckpoint, match=rf"rng_state_{lost}\.pth, the random state, is missing"):
        check_checkpoint(checkpoint, 3, lost, sharded=False)


def test_only_weights_are_no_checkpoint(tmp_path: Path) -> None:
    make_trainer(tmp_path, max_steps=1, save_only_model=True, **SAVING).train()
    with pytest.raises(IncompleteCheckpoint, match=r"save_only_model leaves it out.*no older checkpoint is complete"):
        make_trainer(tmp_path, **SAVING).train(resume_from_checkpoint=True)
    with pytest.raises(IncompleteCheckpoint, match="there is no such folder"):
        make_trainer(tmp_path, **SAVING).train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    with pytest.raises(ValueError, match="there is no checkpoint in"):
        make_trainer(tmp_path / "empty", **SAVING).train(resume_from_checkpoint=True)


def test_callbacks_restored_by_transformers_leave_costs_and_drafts_in_place(tmp_path: Path) -> None:
    fields: dict[str, Any] = {**SAVING, "max_steps": 3, "restore_callback_states_from_checkpoint": True}
    straight = make_trainer(tmp_path, **fields)
    straight.train()
    resumed = make_trainer(tmp_path / "resumed", **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same_weights(resumed, straight)
    last, also = steps(straight)[-1], steps(resumed)[-1]
    assert also["compute/student_tokens"] == last["compute/student_tokens"]
    assert also["compute/seconds"] > steps(straight)[1]["compute/seconds"]
    states = json.loads((tmp_path / "resumed" / "checkpoint-3" / "trainer_state.json").read_text())
    assert {"ComputeCount", "Drafting", "RolloutLength"} <= states["stateful_callbacks"].keys()


def test_evaluation_at_the_start_is_not_repeated_on_resume(tmp_path: Path) -> None:
    fields: dict[str, Any] = {**SAVING, "held_out": prompts(4), "eval_on_start": True}
    make_trainer(tmp_path, **fields).train()
    resumed = make_trainer(tmp_path, **{**fields, "max_steps": 3})
    resumed.train(resume_from_checkpoint=True)
    assert [log["step"] for log in resumed.state.log_history if "eval_loss" in log] == [0]
    assert resumed.args.eval_on_start


def test_how_often_is_logged_and_saved_may_change_on_resume(tmp_path: Path) -> None:
    make_trainer(tmp_path, **SAVING).train()
    resumed = make_trainer(tmp_path, **{**SAVING, "max_steps": 6, "logging_steps": 2, "save_steps": 3})
    resumed.train(resume_from_checkpoint=True)
    assert [log["step"] for log in steps(resumed)] == [1, 2, 3, 4, 6]  # 3: a checkpoint keeps no sums
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{n}" for n in (1, 2, 3, 6)}


def test_the_logs_of_several_steps_are_those_of_an_uninterrupted_run(tmp_path: Path) -> None:
    fields: dict[str, Any] = {**SAVING, "max_steps": 6, "logging_steps": 4, "save_steps": 3}
    straight = make_trainer(tmp_path, **fields)
    straight.train()
    resumed = make_trainer(tmp_path / "resumed", **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [log["step"] for log in steps(straight)] == [3, 4, 6]
    assert without_timings(steps(resumed)) == without_timings(steps(straight))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_trainer_that_was_ended_inside_a_step_trains_on_as_a_new_one(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """TRL counts micro-batches over calls of `train`: one more or less would pair those of two steps for ever."""
    fields: dict[str, Any] = {**SAVING, "max_steps": 4, "gradient_accumulation_steps": 2}
    straight = make_trainer(tmp_path / "straight", **fields)
    straight.train()
    ended = make_trainer(tmp_path / "ended", **fields)
    compute_loss, calls = ended.compute_loss, 0

    def end(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:  # the second micro-batch of the second step
            raise error
        return compute_loss(*args, **kwargs)

    ended.compute_loss = end
    with pytest.raises(error):
        ended.train()
    ended.compute_loss = compute_loss
    ended.train(resume_from_checkpoint=True)
    assert same_weights(ended, straight)
    assert without_timings(steps(ended)) == without_timings(steps(straight))


def test_a_lost_best_checkpoint_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields: dict[str, Any] = {
        **SAVING,
        "held_out": prompts(4),
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "save_total_limit": 2,
        "max_steps": 3,
    }
    make_trainer(tmp_path, **fields).train()
    assert "load_best_model_at_end" not in caplog.text
    state = tmp_path / "checkpoint-3" / "trainer_state.json"
    state.write_text(state.read_text().replace(str(tmp_path), "/gone"))
    make_trainer(tmp_path, **fields).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert "is gone or was never saved, so the model is that of the last step, 3" in caplog.text


def test_evaluation_does_not_change_the_random_numbers_of_training(tmp_path: Path) -> None:
    trained = []
    for held_out in ({}, {"held_out": prompts(5), "eval_strategy": "steps", "eval_steps": 1}):
        adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.3)
        trainer = make_trainer(tmp_path, peft_config=adapter, draft_length=3, max_steps=3, **held_out)
        trainer.train()
        trained.append(trainer)
    assert same_weights(*trained)


# ---- Streams ----


def test_a_stream_holds_several_rollouts_of_each_prompt(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        rows=prompts(8).to_iterable_dataset(),
        rollouts_per_prompt=4,
        gradient_accumulation_steps=2,
        max_steps=4,
        draft_length=3,
    )
    batches = asked(trainer)
    trainer.train()
    assert [len(batch) for batch in batches] == [8] * 4
    assert all(batch.count(text) == 4 for batch in batches for text in batch)
    assert sorted({text for batch in batches for text in batch}) == sorted(prompts(8)["prompt"])  # 2 per step: one pass
    with pytest.raises(ValueError, match="rollouts_per_prompt must divide the 4 rollouts of an optimizer step, got 3"):
        make_trainer(tmp_path, rows=prompts(8).to_iterable_dataset(), rollouts_per_prompt=3).train()


def test_a_stream_shorter_than_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the stream of the train_dataset must have the 4 prompts of .*, got 3"):
        make_trainer(tmp_path, rows=prompts(3).to_iterable_dataset()).train()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_stream_resumed_in_a_later_pass_gives_the_prompts_of_the_uninterrupted_run(
    tmp_path: Path, accumulation: int
) -> None:
    fields: dict[str, Any] = {**SAVING, "max_steps": 6, "gradient_accumulation_steps": accumulation}
    fields["per_device_train_batch_size"] = 4 // accumulation
    # Ten rows make two steps per pass, and leave two rows out.
    straight, resumed = (
        make_trainer(tmp_path / name, rows=prompts(10).to_iterable_dataset(), **fields) for name in ("one", "two")
    )
    whole, rest = asked(straight), asked(resumed)
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-3"))
    assert rest == whole[3:]
    assert sorted(whole[0] + whole[1]) != sorted(whole[2] + whole[3])  # another order, other rows left out
    assert without_timings(resumed.state.log_history)[:-1] == without_timings(straight.state.log_history)[:-1]
    assert same_weights(resumed, straight)
