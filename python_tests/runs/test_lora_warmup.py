"""Trains LoRA adapters that are merged, and runs whose student is warmed up by one (Simple-OPD)."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from python_tests.runs.run_files import repeatable, same_weights, tiny_run, trained, trb, written
from trbext.runs import lora_warmup
from trbext.runs.callbacks import StopOnSignal
from trbext.runs.folder import RunFolder
from trbext.runs.lora_warmup import cost_of, warmup_folder
from trbext.runs.settings import RunArguments, parse_settings
from trbext.training.config import TRBConfig

WARM: dict[str, Any] = {
    "lora_rank": 2,
    "lora_sft_steps": 3,
    "lora_learning_rate": 0.05,
    "rollout_policy": "student",
    "loss_estimator": "sampled",
    "loss_weight_cap": 2.0,
}


def assert_of_low_rank(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], rank: int) -> None:
    """Checks that every linear layer differs by a matrix of that rank, and nothing else differs."""
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}
    for name in changed:
        difference = (after[name] - before[name]).double()
        values = torch.linalg.svdvals(difference)
        assert values[rank - 1] > 1e-4
        assert values[rank] < 1e-5 * values[0]


def test_a_run_of_a_lora_adapter_saves_it_merged(tmp_path: Path) -> None:
    settings = tiny_run(tmp_path, lora_rank=3)
    assert trb("train", written(tmp_path / "config.yaml", settings)) == 0
    run = RunFolder(tmp_path / "run")
    assert_of_low_rank(load_file(tmp_path / "student" / "model.safetensors"), trained(run), 3)
    assert not (run.model / "adapter_config.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(run.model)
    assert torch.equal(loaded.state_dict()["model.norm.weight"], trained(run)["model.norm.weight"])


def test_a_warmed_up_run_is_the_run_of_the_merged_student_and_bears_the_cost_of_both(tmp_path: Path) -> None:
    settings = tiny_run(tmp_path, **WARM)
    config = written(tmp_path / "config.yaml", settings)
    assert trb("train", config) == 0
    run, warmup = RunFolder(tmp_path / "run"), RunFolder(warmup_folder(tmp_path / "run"))
    assert warmup.path == tmp_path / "run-warmup"
    # 1. The warmup is supervised, on the teacher's completions, with an adapter.
    assert_of_low_rank(load_file(tmp_path / "student" / "model.safetensors"), trained(warmup), 2)
    supervised = [line for line in warmup.read_metrics() if "loss" in line]
    assert [line["step"] for line in supervised] == [1, 2, 3]
    assert all(line["trb/beta_one_fraction"] == 1 for line in supervised)
    assert supervised[0]["learning_rate"] == 0.05
    # 2. The run is that of the merged student.
    plain = {name: value for name, value in settings.items() if not name.startswith("lora")}
    plain |= {"model_name_or_path": str(warmup.model), "output_dir": str(tmp_path / "by-hand")}
    assert trb("train", written(tmp_path / "by-hand.yaml", plain)) == 0
    by_hand = RunFolder(tmp_path / "by-hand")
    assert same_weights(run, by_hand)
    # 3. Its cost is that of both.
    spent = cost_of(warmup)
    for mine, theirs in zip(run.read_metrics(), by_hand.read_metrics(), strict=True):
        for name in ("compute/student_tokens", "compute/teacher_tokens"):
            assert mine[name] == theirs[name] + spent[name]
        assert mine["compute/seconds"] > spent["compute/seconds"] > 0
    # 4. The same command has nothing to do.
    before = repeatable(run)
    assert trb("train", config, "--resume", "auto") == 0
    assert repeatable(run) == before


def test_a_run_that_was_stopped_continues_with_its_warmed_up_student(tmp_path: Path) -> None:
    settings = tiny_run(tmp_path, save_steps=1, **WARM)
    assert trb("train", written(tmp_path / "config.yaml", settings)) == 0
    run = RunFolder(tmp_path / "run")
    weights, metrics = trained(run), repeatable(run)
    run.forget_finish()
    for step in (3, 4):
        (run.path / f"checkpoint-{step}").rename(tmp_path / f"gone-{step}")
    assert trb("train", str(tmp_path / "config.yaml"), "--resume") == 0
    assert all(torch.equal(trained(run)[name], weight) for name, weight in weights.items())
    assert repeatable(run) == metrics
    # One that was stopped in its warmup has no folder yet.
    shutil.rmtree(run.path)
    warmup = RunFolder(warmup_folder(run.path))
    warmup.forget_finish()
    (warmup.path / "checkpoint-3").rename(tmp_path / "gone-3-of-warmup")
    assert trb("train", str(tmp_path / "config.yaml"), "--resume") == 0
    assert all(torch.equal(trained(run)[name], weight) for name, weight in weights.items())


def test_a_finished_warmed_up_run_continues_to_more_steps(tmp_path: Path) -> None:
    settings = tiny_run(tmp_path, save_steps=1, **WARM)
    assert trb("train", written(tmp_path / "config.yaml", settings)) == 0
    assert trb("train", str(tmp_path / "config.yaml"), "--resume", "--max_steps", "6") == 0
    longer = {**settings, "max_steps": 6, "output_dir": str(tmp_path / "longer")}
    assert trb("train", written(tmp_path / "longer.yaml", longer)) == 0
    assert same_weights(RunFolder(tmp_path / "run"), RunFolder(tmp_path / "longer"))


def test_a_finished_warmed_up_run_continues_to_more_epochs(tmp_path: Path) -> None:
    settings = tiny_run(tmp_path, save_steps=1, **WARM, num_train_epochs=1) | {"max_steps": -1}
    assert trb("train", written(tmp_path / "config.yaml", settings)) == 0
    warmup = RunFolder(warmup_folder(tmp_path / "run"))
    before = (warmup.model / "trainer_state.json").read_bytes()
    assert trb("train", str(tmp_path / "config.yaml"), "--resume", "--num_train_epochs", "2") == 0
    assert RunFolder(tmp_path / "run").read_metrics()[-1]["step"] == 20
    assert (warmup.model / "trainer_state.json").read_bytes() == before  # nothing of it depends on the epochs
    assert trb("train", str(tmp_path / "config.yaml"), "--resume", "--num_train_epochs", "2") == 0


@pytest.mark.parametrize("in_run", [True, False])
def test_a_signal_in_the_last_step_of_a_warmup_keeps_the_run_from_beginning(
    in_run: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def on_step_begin(self: StopOnSignal, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.output_dir.endswith("-warmup") != in_run and state.global_step == state.max_steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    config = written(tmp_path / "config.yaml", tiny_run(tmp_path, **WARM))
    with monkeypatch.context() as sent:
        sent.setattr(StopOnSignal, "on_step_begin", on_step_begin)
        code = trb("train", config)
    run, warmup = RunFolder(tmp_path / "run"), RunFolder(warmup_folder(tmp_path / "run"))
    assert warmup.is_finished()
    if in_run:  # the run's own last step, after which there is nothing to end
        assert (code, run.is_finished()) == (0, True)
        return
    assert (code, run.path.exists()) == (130, False)
    words = f"trb: stopped when {warmup.path} was finished; the run after it begins with --resume"
    assert capsys.readouterr().err.splitlines()[-1] == words
    assert trb("train", config, "--resume") == 0
    assert run.is_finished()


def test_a_warmup_does_not_take_over_what_needs_evaluations_or_alters_sampling(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        **WARM,
        "loss_estimator": "full",
        "loss_weight_cap": None,
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "save_strategy": "best",
        "metric_for_best_model": "eval_loss",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "top_p": 0.9,
        "max_steps": 2,
    }
    settings = tiny_run(tmp_path, **fields)
    settings["eval_prompts"] = settings["prompts"]
    assert trb("train", written(tmp_path / "config.yaml", settings)) == 0
    assert RunFolder(tmp_path / "run").is_finished()


def test_a_warmup_pushes_nothing_to_the_repository_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or that would hold an adapter beside the trained model, of which from_pretrained would load the adapter."""
    made: list[TRBConfig] = []

    def train_run(arguments: RunArguments, config: TRBConfig, *_: Any, **__: Any) -> None:
        made.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(lora_warmup, "train_run", train_run)
    hub = {"hub_model_id": "me/mine", "hub_strategy": "all_checkpoints", "hub_revision": "x", "hub_always_push": True}
    settings = tiny_run(tmp_path, **WARM, push_to_hub=True, **hub)
    with pytest.raises(KeyboardInterrupt):
        lora_warmup.train_warmed_up(*parse_settings(settings))
    (config,) = made
    assert config.output_dir == str(tmp_path / "run-warmup")
    assert not config.push_to_hub
    plain = TRBConfig(output_dir="unused", use_cpu=True)
    assert {name: getattr(config, name) for name in hub} == {name: getattr(plain, name) for name in hub}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lora_sft_steps": 3}, "lora_sft_steps trains a LoRA adapter: set lora_rank"),
        ({"lora_rank": 2, "lora_learning_rate": 0.1}, "lora_learning_rate belongs to lora_sft_steps"),
        ({"lora_rank": 0}, "lora_rank must be a whole number of at least 1, got 0"),
        ({"lora_rank": 2, "lora_sft_steps": 0}, "lora_sft_steps must be a whole number of at least 1, got 0"),
        ({**WARM, "loss_weight_cap": 0.5}, "loss_weight_cap must be at least 1"),
        ({**WARM, "prompts": "missing.jsonl"}, "no such file of prompts: missing.jsonl"),
        ({**WARM, "model_name_or_path": "no/such/model"}, "no/such/model"),
        ({**WARM, "eval_strategy": "steps"}, "needs eval_prompts, the held-out prompts"),
    ],
)
def test_what_cannot_be_warmed_up_is_refused_before_a_folder_is_made(
    tmp_path: Path, fields: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trb("train", written(tmp_path / "config.yaml", tiny_run(tmp_path, **fields))) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("run*"))


@pytest.mark.parametrize("letters", [250, 300])  # with "-warmup", 250 are too many
def test_a_name_that_is_too_long_is_refused(tmp_path: Path, letters: int, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tiny_run(tmp_path, **WARM, output_dir=str(tmp_path / ("x" * letters)))
    capsys.readouterr()  # the bars of saving the models
    assert trb("train", written(tmp_path / "config.yaml", settings)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"trb: output_dir must be a path that can be made, got {tmp_path}/xxx")
    assert line.endswith("File name too long")
    assert not list(tmp_path.glob("xxx*"))
