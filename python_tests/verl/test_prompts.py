"""The prompts of a recipe come to verl in the same order, as messages, and no longer than the recipe says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset

from python_tests.models.tiny_models import tiny_tokenizer
from trbext.data.prompts import load_prompts
from trbext.verl.prompts import main

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "student")
    rows = [{"question": "+".join("1" * (1 + n % 5)), "kind": "odd" if n % 2 else "even"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = [
        f"model_name_or_path: {tmp_path / 'student'}",
        f"prompts: {tmp_path / 'rows.jsonl'}",
        "prompt_column: question",
        "prompts_where: kind=odd",
        "prompts_shuffle_seed: 3",
        "max_prompt_length: 8",
        "prompts_limit: 4",
        "system_prompt: add",
        "trb_epsilon: 0.02",
    ]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "recipe.yaml"


def test_they_are_those_of_a_run_of_the_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = recipe.parent / "prompts.parquet"
    assert main([str(recipe), str(output)]) == 0
    assert capsys.readouterr().out == f"4 prompts written to {output}\n"
    expected = load_prompts(
        str(recipe.parent / "rows.jsonl"),
        column="question",
        where="kind=odd",
        shuffle_seed=3,
        system_prompt="add",
        fits=lambda prompts: [len("".join(message["content"] for message in prompt)) <= 8 for prompt in prompts],
        limit=4,
    )
    written = Dataset.from_parquet(str(output))
    assert written["prompt"][:] == expected["prompt"][:]
    assert {len(messages) for messages in written["prompt"]} == {2}
    assert max(len(messages[1]["content"]) for messages in written["prompt"]) == 5
    assert [info["index"] for info in written["extra_info"]] == [0, 1, 2, 3]


def test_a_recipe_without_prompts_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("trb_epsilon: 0.02\n", encoding="utf-8")
    assert main([str(recipe), str(tmp_path / "out.parquet")]) == 2
    assert capsys.readouterr().err == f"trbext.verl.prompts: {recipe} must have 'prompts'\n"
