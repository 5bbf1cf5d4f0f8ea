"""Tests `trb train` in a folder: begun, resumed, extended or refused, the only run in it, never ended by what it
prints."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

import trbext.runs.launch
import trbext.runs.plots
from python_tests.runs.complaint import one_line
from python_tests.runs.run_files import repeatable, same_weights, tiny_run, trained, trb, written
from trbext.runs.folder import RunFolder
from trbext.runs.launch import check_one_group
from trbext.runs.printing import printing_survives
from trbext.runs.resume_rules import check_changes
from trbext.runs.settings import parse_settings
from trbext.training.trainer import TRBTrainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, Any]]:
    """Returns a finished run of four steps, and its settings."""
    folder = tmp_path_factory.mktemp("whole")
    settings = tiny_run(folder)
    assert trb("train", written(folder / "run.yaml", settings)) == 0
    return RunFolder(folder / "run"), settings


@pytest.fixture
def copied(tmp_path: Path, whole: tuple[RunFolder, dict[str, Any]]) -> tuple[RunFolder, dict[str, Any]]:
    """Returns a copy of `whole` in a folder of the test's own."""
    run, settings = whole
    shutil.copytree(run.path, tmp_path / "run")
    return RunFolder(tmp_path / "run"), {**settings, "output_dir": str(tmp_path / "run")}


Run = tuple[RunFolder, dict[str, Any]]


def train(tmp_path: Path, settings: dict[str, Any], *words: str) -> int:
    return trb("train", written(tmp_path / "run.yaml", settings), *words)


def test_a_finished_run_stays_as_it_is(
    tmp_path: Path, whole: Run, copied: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = copied
    monkeypatch.setattr(TRBTrainer, "__init__", None)  # nothing is loaded
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    for words in (["--resume"], ["--resume", "auto"], ["--resume=auto"]):
        assert train(tmp_path, settings, *words) == 0
        assert "is finished: its last step is trained" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_a_finished_run_without_curves_or_checkpoints_is_not_trained_again(tmp_path: Path) -> None:
    """Of another beta than 1 there is no reverse KL to plot."""
    settings = tiny_run(tmp_path, beta=0.5, save_strategy="no", max_steps=2)
    config = written(tmp_path / "run.yaml", settings)
    assert trb("train", config) == 0
    run = RunFolder(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.name != "train.lock"}
    assert trb("train", config, "--resume", "auto") == 0
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.name != "train.lock"} == before


def test_what_a_kill_after_the_last_checkpoint_left_out_is_written(tmp_path: Path, whole: Run, copied: Run) -> None:
    run, settings = copied
    shutil.rmtree(run.model)
    run.plot.unlink()
    assert train(tmp_path, settings, "--resume") == 0
    assert run.is_finished()
    assert same_weights(run, whole[0])
    assert repeatable(run) == repeatable(whole[0])
    assert run.plot.stat().st_size > 10_000
    assert len([line for line in run.read_metrics() if "train_runtime" in line]) == 1


def test_resume_auto_begins_continues_and_ends(tmp_path: Path, whole: Run) -> None:
    settings = {**whole[1], "output_dir": str(tmp_path / "run")}
    run = RunFolder(tmp_path / "run")
    path = written(tmp_path / "run.yaml", settings)
    assert trb("train", "--resume", "auto", path) == 0  # there is nothing yet
    assert same_weights(run, whole[0])
    shutil.rmtree(run.path / "checkpoint-4")
    shutil.rmtree(run.model)
    assert trb("train", path, "--resume", "auto") == 0
    assert same_weights(run, whole[0])
    shutil.rmtree(run.path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert trb("train", path, "--resume", "auto") == 2


def test_a_run_of_a_constant_learning_rate_can_be_extended(tmp_path: Path, whole: Run, copied: Run) -> None:
    run, settings = copied
    longer = {**settings, "max_steps": 6, "logging_steps": 1, "save_steps": 3, "dataloader_num_workers": 1}
    assert train(tmp_path, longer, "--resume") == 0
    assert run.settings()["max_steps"] == 6
    straight = {**longer, "output_dir": str(tmp_path / "straight")}
    assert train(tmp_path, straight) == 0
    assert same_weights(run, RunFolder(tmp_path / "straight"))
    assert repeatable(run) == repeatable(RunFolder(tmp_path / "straight"))
    assert not same_weights(run, whole[0])
    assert train(tmp_path, {**longer, "max_steps": 5}, "--resume") == 2  # it has six steps


def test_a_finished_run_without_checkpoints_keeps_its_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny_run(tmp_path, save_strategy="no", max_steps=2)
    assert train(tmp_path, settings) == 0
    run = RunFolder(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.name != "train.lock"}
    for length, words in (
        ({"max_steps": 1}, "has trained 2 steps, more than max_steps 1"),
        ({"max_steps": 3}, "has trained 2 steps and has no checkpoint from which it could continue (save_strategy no)"),
        ({"max_steps": -1, "num_train_epochs": 1}, "has trained 2 steps and has no checkpoint from which it could co"),
    ):
        capsys.readouterr()
        assert train(tmp_path, settings | length, "--resume") == 2
        assert words in one_line(capsys)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.name != "train.lock"} == before


def test_an_extension_that_was_killed_at_its_start_is_not_taken_for_finished(
    tmp_path: Path, copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = copied
    longer = {**settings, "max_steps": 5}

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TRBTrainer, "train", killed)
    assert train(tmp_path, longer, "--resume", "auto") == 130
    monkeypatch.undo()
    assert not run.is_finished()
    assert train(tmp_path, longer, "--resume", "auto") == 0
    assert json.loads((run.model / "trainer_state.json").read_text())["global_step"] == 5


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"lr_scheduler_type": "linear"}, "lr_scheduler_type 'linear' depends on it"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type 'cosine' depends on it"),
        ({"trb_warmup_steps": 0.5}, "trb_warmup_steps 0.5 is a share of it"),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1}, "warmup_steps 0.1 is a share of it"),
        ({"rollout_policy": "sft", "sft_steps": 0.25}, "sft_steps 0.25 is a share of it"),
    ],
)
def test_a_run_whose_steps_depend_on_its_length_cannot_be_extended(
    tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    settings = tiny_run(tmp_path, **fields)
    config = parse_settings(settings)[1]
    with pytest.raises(ValueError, match=r"was started with another max_steps \(4 -> 8\)") as refusal:
        check_changes({"max_steps": "4 -> 8"}, config)
    assert reason in str(refusal.value)
    check_changes({"eval_steps": "4 -> 8"}, config)
    check_changes({"vllm_server_base_url": "http://a:8000 -> http://b:8000"}, config)


def test_a_teachers_server_may_move_but_no_other_teacher_may_become_one(tmp_path: Path) -> None:
    config = parse_settings(tiny_run(tmp_path))[1]
    check_changes({"teacher_url": "http://a:8000 -> http://b:8000"}, config)
    for change in ("unset -> http://a:8000", "http://a:8000 -> unset", "None -> http://a:8000"):
        with pytest.raises(ValueError, match=f"other settings .teacher_url: {change}"):
            check_changes({"teacher_url": change}, config)


def test_a_folder_that_cannot_be_locked_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.lock.touch()

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(folder.lock))  # the folder is another user's

    monkeypatch.setattr(FileLock, "acquire", refused)
    folder.check_unlocked()


@pytest.mark.parametrize("kind", ["reduce_lr_on_plateau", "greedy"])
def test_a_learning_rate_by_evaluations_keeps_them(tmp_path: Path, kind: str) -> None:
    config = parse_settings(tiny_run(tmp_path, lr_scheduler_type=kind, logging_steps=5, eval_strategy="epoch"))[1]
    for name in ("eval_steps", "eval_strategy", "eval_on_start", "eval_delay"):
        with pytest.raises(ValueError, match=rf"other evaluations \({name}: 1 -> 2\), and lr_scheduler_type '{kind}'"):
            check_changes({name: "1 -> 2"}, config)
    check_changes({"logging_steps": "1 -> 5"}, config)
    config.eval_strategy, config.eval_steps = "steps", 5  # as transformers sets it if only logging_steps is given
    with pytest.raises(ValueError, match=r"other evaluations \(logging_steps: 1 -> 5\)"):
        check_changes({"logging_steps": "1 -> 5"}, config)


def test_a_changed_length_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny_run(tmp_path, lr_scheduler_type="linear", max_steps=1)
    assert train(tmp_path, settings) == 0
    capsys.readouterr()
    assert train(tmp_path, {**settings, "max_steps": 2}, "--resume", "auto") == 2
    assert "was started with another max_steps (1 -> 2), and lr_scheduler_type 'linear' depends" in one_line(capsys)


def test_changed_prompts_and_models_are_refused_by_name(
    tmp_path: Path, copied: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run, settings = copied
    shutil.rmtree(run.model)
    prompts = tmp_path / "prompts.jsonl"
    text = Path(settings["prompts"]).read_text(encoding="utf-8")
    original = Path(settings["prompts"])
    try:
        original.write_text(text.replace("10+3", "11+3"), encoding="utf-8")
        assert train(tmp_path, settings, "--resume") == 2
        assert "was started with other contents of the training prompts, which have changed" in one_line(capsys)
    finally:
        original.write_text(text, encoding="utf-8")
    for name, what in (("model_name_or_path", "student"), ("teacher_model_name_or_path", "teacher")):
        weights = Path(settings[name]) / "model.safetensors"
        held = weights.read_bytes()
        try:
            weights.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
            assert train(tmp_path, settings, "--resume") == 2
            assert f"was started with other contents of the {what}, which have changed" in one_line(capsys)
        finally:
            weights.write_bytes(held)
    assert not prompts.exists()
    assert train(tmp_path, settings, "--resume") == 0


def test_another_number_of_processes_must_keep_the_step(
    tmp_path: Path, copied: Run, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run, settings = copied
    shutil.rmtree(run.model)
    origin = run.origin()
    assert (origin["processes"], origin["rollouts_per_step"]) == (1, 4)
    run.write_origin(origin | {"processes": 2, "rollouts_per_step": 8})
    assert train(tmp_path, settings, "--resume") == 2
    assert "was started with 8 rollouts in an optimizer step, on 2 processes, and would continue with 4" in one_line(
        capsys
    )
    assert train(tmp_path, {**settings, "gradient_accumulation_steps": 2}, "--resume") == 0
    assert "started on 2 processes and continues with 1" in caplog.text
    # On as many processes as before, the same product of other factors is another run.
    assert train(tmp_path, {**settings, "per_device_train_batch_size": 2}, "--resume") == 2


def test_a_checkpoint_without_a_part_is_one_line(
    tmp_path: Path, copied: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run, settings = copied
    shutil.rmtree(run.model)
    (run.path / "checkpoint-4" / "scheduler.pt").unlink()
    assert train(tmp_path, settings, "--resume") == 2
    line = one_line(capsys)
    assert (
        "scheduler.pt, the learning rate schedule, is missing; delete checkpoint-4 to continue from checkpoint-2"
        in line
    )
    shutil.rmtree(run.path / "checkpoint-4")
    assert train(tmp_path, settings, "--resume") == 0
    assert run.is_finished()


def test_two_processes_do_not_train_in_one_folder(
    tmp_path: Path, whole: Run, copied: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run, settings = copied
    other = {**settings, "output_dir": str(tmp_path / "other")}
    (tmp_path / "other").mkdir()
    for folder, fields, words in ((run.path, settings, ["--resume"]), (tmp_path / "other", other, [])):
        with FileLock(folder / "train.lock"):
            assert train(tmp_path, fields, *words) == 2
            assert f"another process trains in {folder}" in one_line(capsys)
    assert train(tmp_path, other) == 0  # a lock that nobody holds is no run
    assert same_weights(RunFolder(tmp_path / "other"), whole[0])


def test_a_plot_that_cannot_be_made_loses_no_model(
    tmp_path: Path, whole: Run, copied: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, settings = copied
    shutil.rmtree(run.model)
    run.plot.unlink()

    def failing(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trbext.runs.plots, "plot_runs", failing)
    assert train(tmp_path, settings, "--resume") == 0
    assert "plot.png could not be made, which `trb plot` may do later: [Errno 28] No space left" in caplog.text
    assert trained(run).keys() == trained(whole[0]).keys()
    assert not run.plot.exists()


def test_a_run_that_diverges_ends_with_one_line_and_keeps_the_checkpoint(
    tmp_path: Path, whole: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**whole[1], "output_dir": str(tmp_path / "run"), "learning_rate": 1e30, "save_steps": 1}
    assert train(tmp_path, settings) == 1
    line = one_line(capsys)
    assert "no token can be drawn, the logits of the student hold NaN" in line
    assert (tmp_path / "run" / "checkpoint-1").exists()
    assert not RunFolder(tmp_path / "run").model.exists()


# ---- Printing ----


class Failing(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    "stream",
    [
        Failing(BrokenPipeError(32, "Broken pipe")),
        Failing(OSError(28, "No space left on device")),
        Failing(ValueError("I/O operation on closed file")),
        None,
    ],
)
def test_a_run_survives_a_standard_output_that_cannot_be_written(
    tmp_path: Path, whole: Run, stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    settings = {**whole[1], "output_dir": str(tmp_path / "run"), "max_steps": 1}
    assert train(tmp_path, settings) == 0
    assert RunFolder(tmp_path / "run").is_finished()


def test_letters_that_an_encoding_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    with printing_survives():
        print("run ünder way")
    assert buffer.getvalue() == b"run \\xfcnder way\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_standard_output_is_no_error_when_the_interpreter_ends() -> None:
    script = "from trbext.runs.printing import printing_survives\nwith printing_survives():\n    print('a step')\n"
    with open("/dev/full", "w", encoding="utf-8") as full:
        ended = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, env=os.environ)
    assert (ended.returncode, ended.stderr) == (0, b"")


# ---- Launchers ----


def test_processes_that_do_not_meet_are_refused_before_a_folder_is_made(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**whole[1], "output_dir": str(tmp_path / "run")}
    for environment, processes in (
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"WORLD_SIZE": "1", "PMI_SIZE": "2"}, 1),
        ({}, 1),
    ):
        monkeypatch.setattr(trbext.runs.launch, "os", SimpleNamespace(environ=environment))
        check_one_group(processes)
    monkeypatch.setattr(trbext.runs.launch, "os", SimpleNamespace(environ={"WORLD_SIZE": "2"}))
    assert train(tmp_path, settings) == 2
    assert "the launcher started 2 processes (WORLD_SIZE), but this one is in a group of 1" in one_line(capsys)
    assert not (tmp_path / "run").exists()
