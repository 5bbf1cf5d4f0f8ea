"""The README's examples do what they say, and its recipes parse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.docs.pages import README, ROOT, python_blocks
from python_tests.models.tiny_models import tiny_llama
from trbext import reference
from trbext.cli.words import parser
from trbext.runs.settings import parse_run
from trbext.studies.compare.declaration import read_study
from trbext.studies.compare.wording import planned_power


def test_the_sampling_loop_blends_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (block for block in python_blocks(README) if "def generate" in block)
    scope: dict[str, object] = {}
    exec(code, scope)
    student, teacher = tiny_llama(1), tiny_llama(2)
    prompt = torch.tensor([[5, 6], [7, 8]])
    kept: list[torch.Tensor] = []
    multinomial = torch.multinomial

    def watched(probabilities: torch.Tensor, count: int) -> torch.Tensor:
        kept.append(probabilities)
        return multinomial(probabilities, count)

    monkeypatch.setattr(torch, "multinomial", watched)
    ids = scope["generate"](student, teacher, prompt, 5)  # type: ignore[operator]
    assert ids.shape == (2, 7)
    for step, mu in enumerate(kept):
        with torch.no_grad():
            logits = [model(ids[:, : 2 + step]).logits[:, -1] for model in (student, teacher)]
        expected = reference.blend(*logits, 0.02)
        assert torch.allclose(mu.double(), expected.log_probs.exp(), atol=1e-4)
        assert (expected.beta < 1).all()


def test_the_trainer_of_the_readme_trains_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (block for block in python_blocks(README) if "TRBTrainer(" in block)
    assert len([line for line in code.splitlines() if line.strip()]) <= 18
    for written, short in (("max_steps=240", "max_steps=2"), ("batch_size=32", "batch_size=4")):
        assert written in code
        code = code.replace(written, short)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(code, scope)
    steps = [line for line in scope["trainer"].state.log_history if "trb/kl_max" in line]
    assert [line["trb/epsilon"] for line in steps] == [0.5, pytest.approx(0.5 * 79 / 80)]
    for line in steps:
        assert 0 < line["trb/kl_max"] <= line["trb/epsilon"] * (1 + 1e-4) + 1e-7


RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", [name for name in RECIPES if not name.startswith(("study-", "control-"))])
def test_recipes_parse(recipe: str) -> None:
    # use_cpu: transformers refuses bf16 if there is neither a GPU nor this field.
    arguments, config, settings = parse_run(ROOT / "recipes" / recipe, ["--use_cpu", "true"])
    assert arguments.model_name_or_path
    assert config.output_dir.startswith("runs/")
    assert settings["trb_epsilon"] > 0


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith("study-")])
def test_studies_parse_and_could_resolve_something(recipe: str) -> None:
    study, _ = read_study(ROOT / "recipes" / recipe)
    assert study.folder.parts[0] == "runs"
    assert planned_power(study) is None


QUOTED = ["demo", "smollm2-pruned", *(name.removesuffix(".yaml") for name in RECIPES if "study" in name)]


@pytest.mark.parametrize("recipe", [*QUOTED, "control-field"])
def test_a_recipe_whose_numbers_a_page_quotes_measures_no_clock(recipe: str) -> None:
    text = (ROOT / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    assert re.search(r"^ *draft_length: \d", text, re.M)
    assert parser().parse_args(["demo"]).draft_length == "0"
