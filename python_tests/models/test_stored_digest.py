"""The digest of a stored model changes with each file that decides what the model does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from trbext.models.stored_digest import model_digest


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "merges.txt", "vocab.txt", "qwen.tiktoken", "modeling_mine.py"]
)
def test_a_file_of_the_model_changes_its_digest(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text("{} ")
    before = model_digest(str(tmp_path))
    assert before == model_digest(str(tmp_path))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "trainer_state.json").write_text('{"step_time": 0.1}')  # how the model came to be, with times
    assert model_digest(str(tmp_path)) == before
    (tmp_path / name).write_text(" {}")
    assert model_digest(str(tmp_path)) != before


def test_the_base_model_of_an_adapter_changes_its_digest(tmp_path: Path) -> None:
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    adapter.mkdir()
    base.mkdir()
    (base / "model.safetensors").write_text("one")
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    before = model_digest(str(adapter))
    (base / "model.safetensors").write_text("two")
    assert model_digest(str(adapter)) != before
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "owner/name"}))
    assert model_digest(str(adapter)) is not None
    assert model_digest("owner/name") is None


def test_the_digest_of_an_adapter_needs_no_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}')
    assert model_digest(str(tmp_path)) is not None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("null", "must hold an object with the text base_model_name_or_path, got None"),
        ('{"base_model_name_or_path": null}', "must hold an object with the text base_model_name_or_path, got {"),
        ("{", "must be JSON, got JSONDecodeError: "),
        ('{"base_model_name_or_path": "FOLDER"}', "must be another folder than the adapter's, got "),
    ],
)
def test_an_adapter_that_names_no_other_model_as_its_base_is_refused(tmp_path: Path, config: str, words: str) -> None:
    (tmp_path / "adapter_config.json").write_text(config.replace("FOLDER", str(tmp_path)))
    with pytest.raises(ValueError, match=f"{tmp_path}/adapter_config.json {words}".replace("{", r"\{")) as refused:
        model_digest(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_an_adapter_of_an_adapter_is_refused(tmp_path: Path) -> None:
    """Two that named each other were followed without end."""
    for name, base in (("one", "two"), ("two", "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": str(tmp_path / base)})
        )
    with pytest.raises(ValueError, match=r"must be a whole model, got .*two, which is an adapter itself: merge that"):
        model_digest(str(tmp_path / "one"))
