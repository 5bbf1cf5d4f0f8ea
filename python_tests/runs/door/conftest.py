"""Makes two tiny models and a run of them, in a working folder of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    # A conftest that needs a missing package would end the collection of every folder.
    from python_tests.models.tiny_models import saved, tiny_llama, tiny_tokenizer

    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer()
    return {name: saved(folder / name, tiny_llama(seed), tokenizer) for seed, name in enumerate(("student", "teacher"))}


@pytest.fixture
def config(tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Writes the configuration of a run of a few seconds on two tiny models, in `tmp_path`, which is the working
    folder."""
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
