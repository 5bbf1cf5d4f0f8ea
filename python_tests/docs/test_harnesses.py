"""Runs the documentation's task file in lm-evaluation-harness, if that is installed, on a folder of a model."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trbext.data.counting_sort import correct_completion
from trbext.data.demo_models import model_path
from trbext.data.prompts import load_prompts
from trbext.evaluation.verifiers import numeric

ROOT = Path(__file__).resolve().parents[2]
SAMPLED = "do_sample: true, temperature: 1.0, top_k: 0, top_p: 1.0, max_gen_toks: 256"


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the package lm-eval")
def test_the_task_file_counts_the_completions_that_our_verifier_accepts(tmp_path: Path) -> None:
    # 1. The demonstration's teacher, whose greedy completions are right, and its prompts as messages; every third
    # answer is a wrong one.
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
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    # 2. The task file, with these prompts and greedy.
    text = (ROOT / "recipes" / "harnesses" / "gsm_symbolic.yaml").read_text(encoding="utf-8")
    assert SAMPLED in text
    text = text.replace(SAMPLED, "do_sample: false, max_gen_toks: 32")
    text = text.replace("runs/smollm2-models/prompts/eval.jsonl", str(prompts))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "task.yaml").write_text(text, encoding="utf-8")
    words = ["--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--tasks", "gsm_symbolic_local"]
    words += ["--include_path", str(tmp_path / "tasks"), "--apply_chat_template", "--device", "cpu"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "lm_eval", *words, "--output_path", str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | offline)
    assert run.returncode == 0, run.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("results*.json")
    found = json.loads(results.read_text(encoding="utf-8"))["results"]["gsm_symbolic_local"]
    assert found["exact_match,last-number"] == pytest.approx(4 / 6)
