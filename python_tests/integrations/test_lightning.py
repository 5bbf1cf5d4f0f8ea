"""The Lightning example of docs/hosts/integrate.md trains the student."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from python_tests.integrations.integrate_page import run

pytest.importorskip("lightning")


def test_the_example_trains_the_student_and_leaves_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("lightning")
    assert names["trainer"].global_step == 2
    for name, changed in (("student", True), ("teacher", False)):
        before = AutoModelForCausalLM.from_pretrained(names[f"{name}_path"]).state_dict()
        after = names[name].state_dict()
        assert any(not torch.equal(weight, after[key]) for key, weight in before.items()) == changed
    assert not any("teacher" in key for key in names["module"].state_dict())
