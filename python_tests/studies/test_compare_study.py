"""Runs a study in real processes: killed, stopped and continued, it ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from python_tests.runs.test_cli import config, without_clock  # noqa: F401  (config is a fixture)
from python_tests.studies.study_files import write
from trbext.cli import main
from trbext.errors import UsageError
from trbext.runs.exit_codes import exit_code
from trbext.runs.folder import RunFolder
from trbext.studies.compare.declaration import read_study
from trbext.studies.compare.devices import least_used, visible_gpus
from trbext.studies.compare.worker import train

STEPS = 30


@pytest.fixture
def study(tmp_path: Path, config: dict[str, Any]) -> Path:  # noqa: F811
    del config["output_dir"]
    config |= {"eval_prompts": config["prompts"], "eval_prompts_limit": 4, "eval_strategy": "steps", "eval_steps": 10}
    config |= {"max_steps": STEPS, "save_steps": 5, "trb_warmup_steps": STEPS}
    declared = {
        "output_dir": str(tmp_path / "study"),
        "metric": {"name": "eval_loss"},
        "reference": "OPD",
        "seeds": [1, 2],
        "processes": 1,
        "threads": torch.get_num_threads(),  # as the run that the test compares with
        "base": config,
        "runs": {"TRB": {"trb_epsilon": 0.5}, "OPD": {"rollout_policy": "student"}},
    }
    return write(tmp_path, declared)


def start(study: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trbext", "compare", str(study)]
    return subprocess.Popen(command, cwd=study.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait(condition: Callable[[], bool], seconds: float = 1800) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def at_work(folder: Path) -> list[int]:
    """Returns the processes that train in the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if b"trbext.studies.compare.worker" in command and b"\0" + bytes(folder) in command:
                found.append(int(process.name))
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_a_killed_study_leaves_no_process_behind_and_continues_to_the_same_end(
    tmp_path: Path,
    study: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "study"
    run = RunFolder(folder / "runs" / "trb" / "seed-1")

    killed = start(study)
    wait(lambda: run.last_checkpoint() is not None)
    killed.kill()
    killed.communicate()
    wait(lambda: not at_work(folder))  # its standard input closed
    assert len(list(run.path.glob("checkpoint-*"))) == 1
    assert 0 < len(run.read_metrics()) < STEPS

    stopped = start(study)
    wait(lambda: (run.path / "finished.json").exists())
    stopped.send_signal(signal.SIGTERM)
    out, _ = stopped.communicate(timeout=1800)
    assert stopped.returncode == 130, out
    assert "stopped with 3 of 4 runs to go; the same command continues from their checkpoints" in out
    assert not at_work(folder)
    assert not list(run.path.glob("checkpoint-*"))
    finished_at = (run.path / "finished.json").read_text(encoding="utf-8")

    declared = yaml.safe_load(study.read_text(encoding="utf-8")) | {"processes": 2}
    assert main(["compare", str(write(tmp_path, declared))]) == 0
    out = capsys.readouterr().out
    assert "[3/4]" in out
    assert re.search(r"about (\d+ min )?\d+ s left", out)
    assert "[4/4]" in out
    assert "TRB, seed 1 finished" not in out  # it is not repeated
    assert (run.path / "finished.json").read_text(encoding="utf-8") == finished_at
    assert (folder / "index.html").exists()
    assert "2 seeds and 1 comparison the" in " ".join(out.split())

    # The run whose study was killed equals the run that `trb train` makes of the same settings without a stop.
    straight = tmp_path / "straight"
    settings = yaml.safe_load((run.path.parent / "seed-1.yaml").read_text(encoding="utf-8"))
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(settings | {"output_dir": str(straight)}), encoding="utf-8")
    assert main(["train", str(tmp_path / "alone.yaml")]) == 0
    alone = RunFolder(straight)
    assert of_training(run) == of_training(alone)
    assert weights(run).keys() == weights(alone).keys()
    assert all(torch.equal(tensor, weights(alone)[name]) for name, tensor in weights(run).items())


def of_training(run: RunFolder) -> list[dict[str, Any]]:
    return [line for line in without_clock(run.read_metrics()) if "trb/kl" in line or "eval_loss" in line]


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.model / "model.safetensors")


def test_a_run_folder_that_cannot_be_resumed_is_named(tmp_path: Path, study: Path) -> None:
    declared, _ = read_study(study)
    settings = declared.settings(declared.runs[0], 1)
    file = tmp_path / "seed-1.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    folder = RunFolder(Path(settings["output_dir"]))
    (folder.path / "checkpoint-5").mkdir(parents=True)
    with pytest.raises(UsageError, match="trb/seed-1 holds files but no run that can continue"):
        train(file, keep_model=True)
    folder.write_settings(settings | {"learning_rate": 0.5})
    with pytest.raises(UsageError, match=r"was started with other settings \(learning_rate: 0.5 -> 0.01\)"):
        train(file, keep_model=True)


def test_a_run_that_cannot_start_stops_the_study_before_it_has_a_folder(
    tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = yaml.safe_load(study.read_text(encoding="utf-8"))
    declared["base"]["prompt_column"] = "question"
    assert main(["compare", str(write(tmp_path, declared))]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert not Path(declared["output_dir"]).exists()
    assert "have no column 'question', only prompt, answer" in line


class InThisProcess:
    """Trains a run of a study while it is made, which takes a tenth of the time of a process with its imports."""

    def __init__(self, command: list[str], *, stdout: IO[bytes], **_: Any) -> None:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            self.code = exit_code(lambda: train(Path(command[3]), keep_model="--keep-model" in command))
        stdout.write(said.getvalue().encode())

    def poll(self) -> int:
        return self.code


@pytest.mark.parametrize("processes", ["in this process", pytest.param("of their own", marks=pytest.mark.nightly)])
def test_a_run_that_fails_is_named_and_the_others_finish(
    processes: str, tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if processes == "in this process":
        monkeypatch.setattr("trbext.studies.compare.runner.subprocess.Popen", InThisProcess)
    declared = yaml.safe_load(study.read_text(encoding="utf-8"))
    declared["processes"] = 2
    declared["base"] |= {"max_steps": 6, "eval_steps": 2, "max_grad_norm": 0}
    declared["runs"]["TRB"]["learning_rate"] = 1e30  # its logits are NaN after a step
    assert main(["compare", str(write(tmp_path, declared))]) == 1
    out, err = capsys.readouterr()
    for seed in (1, 2):
        assert re.search(rf"OPD, seed {seed} finished", out)
        assert re.search(rf"TRB, seed {seed}: exit code 1: .*no token can be drawn.* \(see .*seed-{seed}.log\)", err)
    assert "Incomplete: 2 of 4 runs are missing" in " ".join(out.split())


def test_runs_are_spread_over_the_gpus_that_the_study_sees(
    tmp_path: Path, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-9f,6")
    gpus = visible_gpus()
    assert gpus == ["4", "GPU-9f", "6"]
    assert [least_used(gpus, in_use) for in_use in ([], ["4"], ["4", "6"], ["4", "6", "GPU-9f", "4"])] == [
        *("4", "GPU-9f", "GPU-9f", "GPU-9f")
    ]
    assert least_used(["0"], []) is None  # one GPU is left to the process as it is
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible_gpus() == ["0", "1"]

    seen: list[str] = []

    class Popen:
        """A process that is over at once."""

        def __init__(self, command: list[str], *, env: dict[str, str], **_: Any) -> None:
            seen.append(env["CUDA_VISIBLE_DEVICES"])

        def poll(self) -> int:
            return 1

    monkeypatch.setattr("trbext.studies.compare.runner.subprocess.Popen", Popen)
    declared = yaml.safe_load(study.read_text(encoding="utf-8")) | {"processes": 3}
    assert main(["compare", str(write(tmp_path, declared))]) == 2
    assert seen == ["0", "1", "0", "0"]  # the fourth when all three were over
