"""Every fault of the user: exit code 2, one line that names it, and no folder. A new fault is a new row of a table."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import saved, tiny_llama, tiny_tokenizer

from trbext.cli import main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer()
    return {name: saved(folder / name, tiny_llama(seed), tokenizer) for seed, name in enumerate(("student", "teacher"))}


@pytest.fixture
def config(tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run of a few seconds on two tiny models, in `tmp_path`, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{n}+{n % 7}=", "answer": str(n)} for n in range(10, 50)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "model_name_or_path": models["student"],
        "teacher_model_name_or_path": models["teacher"],
        "prompts": "prompts.jsonl",
        "output_dir": "run",
        "max_completion_length": 8,
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "draft_length": 3,
        "save_strategy": "no",
        "use_cpu": True,
    }


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that `trb` says of a fault of the user."""
    before = set(Path().iterdir())
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("trb: ")
    assert set(Path().iterdir()) == before
    return lines[0]


def write(config: dict[str, Any], **changes: Any) -> str:
    """The file of a configuration; `config.yaml` is written anew."""
    Path("config.yaml").write_text(yaml.safe_dump(config | changes), encoding="utf-8")
    return "config.yaml"


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"trb_epsilon": [0.1]}, "trb_epsilon must be one value, got the list [0.1]"),
    ({"trb_epsilon": {"a": 1}}, "trb_epsilon must be one value, got the mapping"),
    ({"trb_epsilon": None}, "trb_epsilon must have a value, got null"),
    ({"trb_epsilon": -1e-5}, "trb_epsilon is a KL budget in nats and must be >= 0, got -1e-05"),
    ({"trb_epsilon": True}, "trb_epsilon must be a number, got true"),
    ({"max_steps": 2.5}, "invalid int value: '2.5'"),
    ({"output_dir": 2026}, "output_dir is text, which YAML reads as 2026: quote it"),
    ({"system_prompt": True}, "system_prompt is text, which YAML reads as True: quote it"),
    ({"prompt_column": 16}, "prompt_column is text, which YAML reads as 16: quote it"),
    ({"lr_scheduler_type": 1}, "lr_scheduler_type is text, which YAML reads as 1: quote it"),
    ({"report_to": [1]}, "report_to is a list of text, of which YAML reads an entry as 1: quote it"),
    ({"chat_template_kwargs": "{a"}, "a mapping on the command line is written as JSON, got '{a'"),
    ({"accelerator_config": {"splits": 1}}, "unexpected keyword argument 'splits'"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be a whole number of at least 1, got 0"),
    ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size must be a whole number of at least 1, got 0"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be a whole number of at least 1, got 0"),
    ({"learning_rate": -1}, "learning_rate must be a number >= 0, and finite, got -1"),
    ({"learning_rate": float("nan")}, "learning_rate must be a number >= 0, and finite, got nan"),
    ({"learning_rate": float("inf")}, "learning_rate must be a number >= 0, and finite, got inf"),
    ({"weight_decay": float("nan")}, "weight_decay must be a number >= 0"),
    ({"max_grad_norm": float("nan")}, "max_grad_norm must be a number >= 0"),
    ({"adam_beta2": 1}, "adam_beta2 must be a number with 0 <= x < 1, got 1.0"),
    ({"max_steps": 0}, "max_steps must be at least 1, or -1 for num_train_epochs, got 0"),
    ({"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs must be a number > 0, and finite, got 0.0"),
    ({"save_steps": 0}, "save_steps must be a number > 0"),
    ({"logging_steps": -1}, "logging_steps must be a number > 0"),
    ({"seed": -1}, "seed must be a whole number with 0 <= x < 2^32, got -1"),
    ({"temperature": 0}, "temperature must be a number >= 1e-06, and finite, got 0.0"),
    ({"temperature": 1e-39}, "temperature must be a number >= 1e-06, and finite, got 1e-39"),
    ({"temperature": float("inf")}, "temperature must be a number >= 1e-06, and finite, got inf"),
    ({"rollout_policy": "student", "top_p": 0}, "top_p must be a share with 0 < top_p <= 1, got 0.0"),
    ({"prompts_limit": 0}, "prompts_limit must be a whole number of at least 1, got 0"),
    ({"eval_prompts_limit": -1}, "eval_prompts_limit must be a whole number of at least 1, got -1"),
    ({"max_prompt_length": 0}, "max_prompt_length must be a whole number of at least 1, got 0"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs {} do not fit lr_scheduler_type"),
    (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}},
        "do not fit lr_scheduler_type 'cosine': get_cosine_schedule_with_warmup() got an unexpected keyword argument",
    ),
    ({"optim": "adamw_bnb_8bit"}, "optim 'adamw_bnb_8bit' cannot be used here"),
    ({"report_to": "clearml"}, "report_to: clearml cannot be used here"),
    ({"report_to": ["clearml"]}, "report_to: clearml cannot be used here"),
    ({"report_to": "nobody"}, "report_to must be none, all, or of"),
    ({"report_to": ["none", "all"]}, "report_to must be none, all, or of"),
    ({"bf16": True, "use_cpu": False}, "bf16"),
    ({1: 2}, "names must be text, got 1: quote it"),
]


@pytest.mark.parametrize(("change", "message"), FIELDS, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_a_field_that_cannot_be_is_refused(
    change: dict[Any, Any], message: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, "train", write(config | change))


def test_every_text_file_is_opened_with_an_encoding() -> None:
    """Ruff's PLW1514 sees only what it knows to be a path."""
    bare = []
    for folder in ("trbext", "benchmarks", "build_support", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(call, ast.Call) and isinstance(call.func, (ast.Attribute, ast.Name)):
                    name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
                    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                    named = {keyword.arg for keyword in call.keywords}
                    binary = name == "open" and any("b" in mode for mode in modes)
                    if name in ("open", "read_text", "write_text") and "encoding" not in named and not binary:
                        bare.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not bare
