"""Runs the documented tasks in lm-evaluation-harness and lighteval, if they are installed, on a folder of a model."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trbext.data.counting_sort import correct_completion
from trbext.data.demo_models import model_path
from trbext.data.prompts import load_prompts
from trbext.evaluation.verifiers import numeric

HARNESSES = Path(__file__).resolve().parents[2] / "recipes" / "harnesses"
SAMPLED = "do_sample: true, temperature: 1.0, top_k: 0, top_p: 1.0, max_gen_toks: 256"


@dataclass(frozen=True)
class Judged:
    """A model, and prompts of which its greedy completions are right but for every third."""

    model: Path
    prompts: Path


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    """The demonstration's teacher, whose greedy completions are right, and its prompts as messages."""
    model = tmp_path / "model"
    shutil.copytree(model_path("demo:teacher"), model)
    settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = "{{ messages[0]['content'] }}"
    (model / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    rows = []
    for number, prompt in enumerate(load_prompts("demo:eval", limit=6)["prompt"]):
        answer = correct_completion(prompt).rpartition("#")[2] if number % 3 else "7"
        assert numeric(prompt, correct_completion(prompt), {"answer": answer}) == bool(number % 3)
        rows.append({"prompt": [{"role": "user", "content": prompt}], "answer": answer})
    prompts = tmp_path / "prompts" / "eval.jsonl"
    prompts.parent.mkdir()
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Judged(model, prompts)


def results_of(command: list[str], output: Path, **environment: str) -> dict[str, Any]:
    """Runs a harness without the network, and returns the results that it writes."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(output.parent / "cache")}
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | offline | environment)
    assert run.returncode == 0, run.stderr[-3000:]
    (results,) = output.rglob("results*.json")
    found: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))["results"]
    return found


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the package lm-eval")
def test_the_task_file_counts_the_completions_that_our_verifier_accepts(judged: Judged, tmp_path: Path) -> None:
    text = (HARNESSES / "gsm_symbolic.yaml").read_text(encoding="utf-8")
    assert SAMPLED in text
    text = text.replace(SAMPLED, "do_sample: false, max_gen_toks: 32")
    text = text.replace("runs/smollm2-models/prompts/eval.jsonl", str(judged.prompts))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "task.yaml").write_text(text, encoding="utf-8")
    words = ["--model", "hf", "--model_args", f"pretrained={judged.model},dtype=float32"]
    words += ["--tasks", "gsm_symbolic_local", "--include_path", str(tmp_path / "tasks")]
    words += ["--apply_chat_template", "--device", "cpu", "--output_path", str(tmp_path / "out")]
    results = results_of([sys.executable, "-m", "lm_eval", *words], tmp_path / "out")
    assert results["gsm_symbolic_local"]["exact_match,last-number"] == pytest.approx(4 / 6)


# lighteval 0.13.0 makes all its tasks when it starts, whichever is asked for: one of them fetches a file, and another
# asks the Hub for a model that judges.
WITHOUT_NETWORK = """
from types import SimpleNamespace
import huggingface_hub, requests
requests.get = lambda *_, **__: SimpleNamespace(status_code=404)
huggingface_hub.HfApi.list_models = lambda self, model_name: [model_name]
from lighteval.__main__ import app
app()
"""


@pytest.mark.skipif(importlib.util.find_spec("lighteval") is None, reason="needs the package lighteval")
def test_the_task_module_counts_them_as_well(judged: Judged, tmp_path: Path) -> None:
    words = [f"model_name={judged.model},dtype=float32,batch_size=6", "gsm_symbolic_local|0"]
    words += ["--custom-tasks", str(HARNESSES / "gsm_symbolic_lighteval.py"), "--output-dir", str(tmp_path / "out")]
    command = [sys.executable, "-c", WITHOUT_NETWORK, "accelerate", *words]
    results = results_of(command, tmp_path / "out", GSM_SYMBOLIC_PROMPTS=str(judged.prompts.parent))
    assert results["gsm_symbolic_local|0"]["last_number"] == pytest.approx(4 / 6)
