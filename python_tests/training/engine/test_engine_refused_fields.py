"""Tests what the trainer refuses of engines before anything is loaded."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from python_tests.models.tiny_models import prompts, tiny_llama
from python_tests.training.engine.fake_engines import FakeEngines
from python_tests.training.trainer_cases import make_trainer
from trbext.errors import UsageError
from trbext.rollout.policies import FixedBeta
from trbext.training.config import TRBConfig
from trbext.training.engine import build
from trbext.training.trainer import TRBTrainer


def test_an_engine_has_the_revision_of_the_teacher_that_the_loss_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr(build, "make_llm", lambda **given: seen.append(given.get("revision")))
    monkeypatch.setattr(build, "LocalEngine", lambda llm: llm)
    models = build.EngineModels("student", "teacher", torch.float32, 4)
    for fields in ({}, {"teacher_model_revision": "v1"}, {"teacher_model_init_kwargs": {"revision": "v2"}}):
        config = TRBConfig(str(tmp_path), use_cpu=True, use_vllm=True, **fields)
        build.trb_engine(config, models)
        assert seen[-1] == config.revision_of_teacher
    assert seen == [None, "v1", "v2"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vllm_mode": "remote"}, "vllm_mode must be one of colocate, server, got 'remote'"),
        ({"rollout_policy": "skd"}, "use_vllm draws the rollouts of trb, .*, got rollout_policy='skd'"),
        ({"rollout_policy": "a:B"}, "got rollout_policy='a:B'"),
        ({"rollout_policy": "student", "top_p": 0.9}, "samples the whole softmax at temperature, which top_p=0.9"),
        ({"rollout_policy": "student", "generation_kwargs": {"min_p": 0.1}}, r"generation_kwargs\['min_p'\]=0.1"),
        ({"vllm_structured_outputs_regex": "a*"}, "vllm_structured_outputs_regex would change"),
        ({"vllm_enable_sleep_mode": True}, "vllm_enable_sleep_mode drops the weights of the teacher"),
        ({"temperature": 0.001}, "at temperatures of at least 0.01, got temperature=0.001"),
        ({"draft_length": 0}, "draft_length must be at least 1, got 0"),
        ({"vllm_tensor_parallel_size": 2}, "vllm_tensor_parallel_size must be 1, got 2: shard them in a server"),
        ({"vllm_mode": "server", "vllm_engine_args": {"enforce_eager": True}}, "takes the arguments of vLLM when it"),
        ({"vllm_engine_args": {"max_model_len": 9}}, "max_model_len is set by vllm_max_model_length: leave it out"),
        ({"vllm_engine_args": "enforce_eager"}, "vllm_engine_args must be a mapping"),
        ({"vllm_after_warmup": "sleep"}, "vllm_after_warmup must be one of student, keep, got 'sleep'"),
        ({"teacher_from_engine": True}, "set loss_top_k, got loss_estimator='full'"),
        ({"teacher_from_engine": True, "loss_top_k": 4, "veto_start": 0.2}, "Veto's target needs, got veto_start=0.2"),
        ({"use_vllm": False, "teacher_from_engine": True}, "teacher_from_engine belongs to rollouts from vLLM"),
    ],
)
def test_fields_that_no_engine_serves_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TRBConfig(output_dir="unused", use_cpu=True, bf16=False, **{"use_vllm": True, **fields})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"policy": FixedBeta(0.5)}, "got the policy FixedBeta"),
        ({"peft_config": LoraConfig(r=2)}, "an adapter would have to be merged .* no PEFT"),
        ({"teacher": tiny_llama(1)}, "needs the teacher by its path, which vLLM loads, got a LlamaForCausalLM"),
        ({"student": tiny_llama(0)}, "needs the student by its path, .* got a LlamaForCausalLM without"),
    ],
)
def test_arguments_that_no_engine_serves_are_refused_before_loading(
    tmp_path: Path, fakes: FakeEngines, arguments: dict[str, Any], words: str
) -> None:
    student, teacher = arguments.pop("student", tmp_path / "nowhere"), arguments.pop("teacher", "nowhere either")
    student = str(student) if isinstance(student, Path) else student
    with pytest.raises(ValueError, match=words):
        make_trainer(tmp_path, student, teacher, use_vllm=True, **arguments)


def test_tools_are_refused(tmp_path: Path, fakes: FakeEngines) -> None:
    args = TRBConfig(str(tmp_path), use_cpu=True, bf16=False, use_vllm=True)
    with pytest.raises(ValueError, match="completions of one turn: no tools"):
        TRBTrainer("nowhere", "nowhere either", args, train_dataset=prompts(4), tools=[print])


def test_without_vllm_a_colocated_engine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trbext.training.engine.build.vllm_is_installed", lambda: False)
    with pytest.raises(ValueError, match="needs vLLM in this environment, and it is not installed"):
        make_trainer(tmp_path, "nowhere", "nowhere either", use_vllm=True)


def test_an_unknown_vllm_is_refused_before_loading(
    tmp_path: Path, fakes: FakeEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.99.0+cpu" if name == "vllm" else version(name))
    with pytest.raises(UsageError, match=r"vLLM must be .* got 0\.99\.0; TRB_VLLM_UNTESTED=1 tries it"):
        make_trainer(tmp_path, "nowhere", "nowhere either", use_vllm=True)
