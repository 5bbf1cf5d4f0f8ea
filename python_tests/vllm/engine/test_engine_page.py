"""The Python code of docs/engines.md draws rollouts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from python_tests.docs.pages import ROOT, python_blocks
from python_tests.vllm.engine.engines import Engines, skip_without_vllm
from python_tests.vllm.model_pairs import save_model
from trbext.vllm.in_process import shut_down

pytestmark = [pytest.mark.vllm, pytest.mark.nightly]
skip_without_vllm()


def test_the_code_of_the_page_draws_rollouts(engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    engines.close()
    (block,) = python_blocks((ROOT / "docs" / "engines.md").read_text(encoding="utf-8"))
    assert "Alignment(width=49152," in block
    for seed, name in enumerate(("teacher", "student")):
        save_model(tmp_path / name, seed, layers=1, vocabulary=49152, positions=2048)
    monkeypatch.chdir(tmp_path)
    # As written, apart from what a tiny model without a tokenizer needs, and the length of the rollouts.
    monkeypatch.setattr(vllm, "LLM", partial(vllm.LLM, enforce_eager=True, skip_tokenizer_init=True, dtype="float32"))
    scope: dict[str, Any] = {}
    exec(compile(block.replace("max_new_tokens=1024", "max_new_tokens=8"), "docs/engines.md", "exec"), scope)
    rollout = scope["drawn"].rollout
    shut_down(scope.pop("llm"))
    assert rollout.tokens.shape == (2, 8)
    assert 0 < rollout.kl.max() <= 0.02 * (1 + 1e-4) + 1e-7
