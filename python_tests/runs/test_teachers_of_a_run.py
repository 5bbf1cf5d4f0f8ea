"""`trb train` reads several teachers, a routing column and the base under an adapter from a YAML file, and resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from python_tests.models.tiny_models import saved, tiny_llama, tiny_tokenizer
from python_tests.runs.run_files import repeatable, same_weights, tiny_run, trb, written
from trbext.runs.folder import RunFolder


def with_teachers(folder: Path, **fields: Any) -> dict[str, Any]:
    settings = tiny_run(folder, **fields)
    other = saved(folder / "other", tiny_llama(3), tiny_tokenizer())
    paths = {"a": settings.pop("teacher_model_name_or_path"), "b": other}
    return {**settings, "teachers": paths}


def test_two_teachers_of_a_yaml_file_train_and_resume_exactly(tmp_path: Path) -> None:
    settings = with_teachers(tmp_path, teacher_weights={"a": 3, "b": 1}, teacher_mean="arithmetic")
    path = written(tmp_path / "run.yaml", settings)
    assert trb("train", path) == 0
    run, again = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "again")
    card = (run.model / "README.md").read_text(encoding="utf-8")
    assert f"| teacher | a: {settings['teachers']['a']}, b: {settings['teachers']['b']} |" in card
    shutil.copytree(run.path, again.path)
    shutil.rmtree(again.model)
    shutil.rmtree(again.path / "checkpoint-4")
    assert trb("train", path, "--output_dir", str(again.path), "--resume") == 0
    assert same_weights(run, again)
    assert repeatable(run) == repeatable(again)
    tiny_llama(4).save_pretrained(settings["teachers"]["b"])
    shutil.rmtree(again.model)
    assert trb("train", path, "--output_dir", str(again.path), "--resume") == 2


def test_a_column_of_the_prompts_names_the_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = with_teachers(tmp_path, teacher_column="domain", max_steps=1)
    path = written(tmp_path / "run.yaml", settings)
    assert trb("train", path) == 2
    assert "teacher_column 'domain' is not among the columns" in capsys.readouterr().err
    prompts = Path(settings["prompts"])
    lines = prompts.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) | {"domain": "ab"[number % 2]} for number, line in enumerate(lines)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert trb("train", path) == 0


def test_an_adapter_trains_toward_its_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tiny_run(tmp_path, learning_rate=0.05, teacher_model_name_or_path="self")
    path = written(tmp_path / "whole.yaml", settings)
    assert trb("train", path) == 2
    assert "an adapter, and model_name_or_path" in capsys.readouterr().err
    torch.manual_seed(0)
    base = LlamaForCausalLM.from_pretrained(settings["model_name_or_path"])
    student = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    student.save_pretrained(tmp_path / "adapter")
    settings["model_name_or_path"] = str(tmp_path / "adapter")
    path = written(tmp_path / "run.yaml", settings)
    assert trb("train", path) == 0
    run = RunFolder(tmp_path / "run")
    kl = [line["trb/reverse_kl"] for line in run.read_metrics() if "trb/reverse_kl" in line]
    assert 0 < kl[-1] < kl[0]
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "adapter", run.model))
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[name], after[name]) for name in before)
    killed = tmp_path / "killed"
    shutil.copytree(run.path, killed)
    shutil.rmtree(killed / "model")
    shutil.rmtree(killed / "checkpoint-4")
    assert trb("train", path, "--output_dir", str(killed), "--resume") == 0
    again = load_file(killed / "model" / "adapter_model.safetensors")
    assert all(torch.equal(after[name], again[name]) for name in after)
    capsys.readouterr()
    shutil.rmtree(killed / "model")
    tiny_llama(4).save_pretrained(tmp_path / "student")  # the teacher, and most of the student
    assert trb("train", path, "--output_dir", str(killed), "--resume") == 2
    assert "was started with other contents of the student, which have changed since" in capsys.readouterr().err
