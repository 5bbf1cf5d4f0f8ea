"""A run of which a file was damaged is refused in one line that names the file and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.runs.complaint import one_line
from python_tests.runs.run_files import tiny_run, trb, written
from trbext.runs.folder import RunFolder

Run = tuple[RunFolder, dict[str, Any]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Returns a run of two steps with a checkpoint of each, and its settings."""
    folder = tmp_path_factory.mktemp("whole")
    settings = tiny_run(folder, max_steps=2, save_steps=1)
    assert trb("train", written(folder / "run.yaml", settings)) == 0
    return RunFolder(folder / "run"), settings


@pytest.fixture
def unfinished(tmp_path: Path, whole: Run) -> Run:
    """Returns a copy of `whole` without its model."""
    shutil.copytree(whole[0].path, tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    return RunFolder(tmp_path / "run"), {**whole[1], "output_dir": str(tmp_path / "run")}


def resumed(run: Run, *words: str) -> int:
    return trb("train", written(run[0].path.parent / "run.yaml", run[1]), "--resume", *words)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("origin.json", b"", "origin.json must be JSON, got an empty file: delete it to resume"),
        ("origin.json", b'{"proc', "origin.json must be JSON, got '{\"proc'"),
        ("origin.json", b"[]", "origin.json must hold a JSON object, got list"),
        ("origin.json", b"\xff\xfe\x00", "origin.json must be UTF-8 text, got byte 0xff at 0"),
        ("origin.json", b'{"processes": "1"}', "origin.json: processes must be a whole number, got '1'"),
        ("metrics.jsonl", b'{"step": 1}\n\xff\xfe\n', "metrics.jsonl must be UTF-8 text, got byte 0xff at 12"),
        (
            "metrics.jsonl",
            b'{"step": 1}\n{"a": 1}\n',
            "metrics.jsonl line 2 must hold metrics with a whole number as 'step', got '{\"a\": 1}'",
        ),
        (
            "metrics.jsonl",
            b"\0" * 99,
            "metrics.jsonl line 1 must hold metrics with a whole number as 'step', got '\\x00",
        ),
        ("metrics.jsonl", b'{"step": 1}\n' + b"[" * 99_999, "metrics.jsonl line 2 must hold metrics"),
        ("model", b"x", "model must be a folder, got a file: move it away"),
        ("model.partial", b"x", "model.partial must be a folder, got a file: move it away"),
        ("checkpoint-3", b"x", "checkpoint-3 must be a folder, got a file: move it away"),
        ("metrics.jsonl", b"[1, 2]\n", "metrics.jsonl line 1 must hold metrics"),
        ("metrics.jsonl", b'{"step": "x"}\n', "metrics.jsonl line 1 must hold metrics"),
    ],
)
def test_a_damaged_file_of_the_folder_is_named(
    unfinished: Run, capsys: pytest.CaptureFixture[str], name: str, content: bytes, fault: str
) -> None:
    (unfinished[0].path / name).write_bytes(content)
    assert resumed(unfinished) == 2
    assert f"{unfinished[0].path}/{fault}" in one_line(capsys)


@pytest.mark.parametrize("name", ["config.yaml", "train.lock", "plot.png", "origin.json", "metrics.partial"])
def test_a_folder_in_the_place_of_a_file_is_named(
    unfinished: Run, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = unfinished[0].path / name
    path.unlink(missing_ok=True)
    path.mkdir()
    assert resumed(unfinished) == 2
    assert f"{path} must be a file, got a folder: move it away" in one_line(capsys)


def test_a_line_of_metrics_that_a_kill_cut_short_is_dropped(unfinished: Run) -> None:
    before = unfinished[0].read_metrics()
    with unfinished[0].metrics.open("a") as file:
        file.write('\n{"step": 2, "lo')  # a line that somebody emptied, and one that a kill cut
    assert unfinished[0].read_metrics() == before


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("trainer_state.json", b"{}", "trainer_state.json must hold a whole number as 'global_step', got none"),
        ("trainer_state.json", b"null", "trainer_state.json must hold a JSON object, got None"),
        ("trainer_state.json", b"\xff\xfe", "trainer_state.json is not UTF-8 text"),
        ("trainer_state.json", {"of_no_trainer": 1}, "must hold fields of a TrainerState, got 'of_no_trainer'"),
        ("trainer_state.json", {"stateful_callbacks": {}}, "must hold 'TrainerControl' among its 'stateful_callbacks'"),
        ("model.safetensors.index.json", b"{}", "model.safetensors.index.json must hold the file of each weight"),
        ("model.safetensors.index.json", b"[]", "index.json must hold the file of each weight as 'weight_map', got []"),
        ("optimizer.pt", {"a": 1}, "optimizer.pt must hold 'state', 'param_groups', got a"),
        ("optimizer.pt", [1], "optimizer.pt must hold 'state', 'param_groups', got list"),
        ("scheduler.pt", [1], "scheduler.pt must hold a state by names, got list"),
        ("rng_state.pth", {"cpu": 1}, "rng_state.pth must hold 'python', 'numpy', 'cpu', got cpu"),
    ],
)
@pytest.mark.parametrize("limit", [2, 3])  # the trained steps are compared with a longer run's too
def test_a_damaged_file_of_a_checkpoint_is_named_and_the_older_one_offered(
    unfinished: Run, capsys: pytest.CaptureFixture[str], name: str, content: Any, fault: str, limit: int
) -> None:
    run, settings = unfinished
    settings["max_steps"] = limit
    file = run.path / "checkpoint-2" / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif name == "trainer_state.json":
        file.write_text(json.dumps(json.loads(file.read_text()) | content))
    else:
        torch.save(content, file)
    assert resumed(unfinished) == 2
    line = one_line(capsys)
    assert fault in line
    assert line.endswith("delete checkpoint-2 to continue from checkpoint-1")


def test_a_damaged_checkpoint_is_not_offered(unfinished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = unfinished[0]
    (run.path / "checkpoint-1" / "trainer_state.json").write_bytes(b"{}")
    torch.save({"a": 1}, run.path / "checkpoint-2" / "optimizer.pt")
    assert resumed(unfinished) == 2
    assert one_line(capsys).endswith("no older checkpoint is complete")


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("optimizer.pt", {"param_groups": []}, "its optimizer.pt or scheduler.pt cannot be loaded (ValueError"),
        ("scheduler.pt", None, "its optimizer.pt or scheduler.pt cannot be loaded (KeyError: 'lr_lambdas')"),
        ("rng_state.pth", {"cpu": torch.zeros(3, dtype=torch.uint8)}, "its random state cannot be loaded ("),
    ],
)
def test_a_state_that_does_not_fit_is_one_line(
    unfinished: Run, capsys: pytest.CaptureFixture[str], name: str, change: dict[str, Any] | None, fault: str
) -> None:
    file = unfinished[0].path / "checkpoint-2" / name
    torch.save({"of": "another"} if change is None else torch.load(file, weights_only=False) | change, file)
    unfinished[1]["max_steps"] = 3
    assert resumed(unfinished) == 2
    assert fault in one_line(capsys)


@pytest.mark.parametrize("content", [b"{}", b"\xff"])
def test_a_model_with_a_damaged_state_is_written_again(tmp_path: Path, whole: Run, content: bytes) -> None:
    shutil.copytree(whole[0].path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    (run.model / "trainer_state.json").write_bytes(content)
    assert not run.is_finished()
    assert resumed((run, {**whole[1], "output_dir": str(run.path)})) == 0
    assert run.is_finished()
