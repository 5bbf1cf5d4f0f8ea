"""The prompts of a recipe come to verl in the same order, as messages, and no longer than the recipe says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

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


def test_a_plain_text_is_counted_as_the_chat_template_writes_it(recipe: Path) -> None:
    options = TEMPLATE + "{% if add_words %}------{% endif %}"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = options
    tokenizer.save_pretrained(recipe.parent / "student")
    plain = recipe.read_text(encoding="utf-8").replace("system_prompt: add\n", "").replace("prompts_limit: 4\n", "")
    output = recipe.parent / "prompts.parquet"
    longest = []
    for more in ("", "\nchat_template_kwargs: {add_words: true}"):
        recipe.write_text(plain + more, encoding="utf-8")
        assert main([str(recipe), str(output)]) == 0
        longest.append(max(len(messages[0]["content"]) for messages in Dataset.from_parquet(str(output))["prompt"]))
    assert longest == [7, 1]


def test_the_tokenizer_is_loaded_as_a_run_loads_it(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    load = AutoTokenizer.from_pretrained

    def loading(path: str, **options: Any) -> Any:
        asked.append(options)
        return load(path)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", loading)
    plain = recipe.read_text(encoding="utf-8")
    recipe.write_text(f"{plain}\nmodel_init_kwargs: {{revision: v2}}\ntrust_remote_code: true", encoding="utf-8")
    assert main([str(recipe), str(recipe.parent / "prompts.parquet")]) == 0
    assert asked == [{"revision": "v2", "trust_remote_code": True}]


def test_the_built_in_prompts_are_those_of_the_seed(recipe: Path) -> None:
    output = recipe.parent / "prompts.parquet"
    for seed in (5, 42):
        recipe.write_text(f"prompts: demo\nprompts_limit: 3\nseed: {seed}", encoding="utf-8")
        assert main([str(recipe), str(output)]) == 0
        written = [messages[0]["content"] for messages in Dataset.from_parquet(str(output))["prompt"]]
        assert written == load_prompts("demo", limit=3, demo_seed=seed)["prompt"][:]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trb_epsilon: 0.02\n", "{recipe} must have 'prompts'"),
        ("", "{recipe} must hold fields and values, got NoneType"),
        ("a: [", "{recipe} is not YAML: "),
        ("prompts: demo\nmax_prompt_length: 1.5", "max_prompt_length must be a whole number, got 1.5"),
        ("prompts: demo\nmax_prompt_length: 0", "max_prompt_length must be a whole number of at least 1, got 0"),
        ("prompts: demo\nprompts_limit: '3'", "prompts_limit must be a whole number, got '3'"),
        ("prompts: demo\nprompts_unique: 'false'", "prompts_unique must be true or false, got 'false'"),
        ("prompts:\n", "{recipe} must have 'prompts'"),
        (
            "prompts: {folder}/rows.jsonl\nprompt_column: question\nmax_prompt_length: 5\n"
            "model_name_or_path: {folder}/plain",
            "need a chat template",
        ),
    ],
)
def test_a_recipe_that_cannot_be_used_is_one_line(
    recipe: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    tiny_tokenizer().save_pretrained(recipe.parent / "plain")  # without a chat template
    recipe.write_text(text.replace("{folder}", str(recipe.parent)), encoding="utf-8")
    capsys.readouterr()
    assert main([str(recipe), str(recipe.parent / "out.parquet")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("trbext.verl.prompts: ")
    assert message.replace("{recipe}", str(recipe)) in said
    assert said.count("\n") == 1
