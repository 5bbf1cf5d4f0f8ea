"""Commands other than `trb train` refuse in one line; output that cannot be written gives no traceback."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from python_tests.runs.door.refusals import refusal, write
from trbext.cli import main
from trbext.cli.commands import OF_THE_EXTRA

ROOT = Path(__file__).resolve().parents[3]


EVAL = ("--prompts", "prompts.jsonl", "--verifier", "numeric", "--limit", "2", "--max-completion-length", "4")


OTHERS = [
    (["plot", "run"], "run is not a run folder with metrics"),
    (["plot", "finished", "--output", "nowhere/plot.png"], "--output: there is no folder nowhere"),
    (["plot", "finished", "--output", "plot.gif"], "must end in .png or .svg"),
    (["plot", "finished", "--epsilon", "1"], "--prompt and --epsilon belong to --rollout"),
    (["plot", "--rollout", "finished", "run"], "--rollout plots one run, got 2"),
    (["plot", "--rollout", "finished"], "finished is neither a run folder of trb train nor a YAML file"),
    (["plot", "--rollout", "config.yaml", "--epsilon", "-1"], "--epsilon must be a KL budget of at least 0 nats"),
    (["plot", "--rollout", "config.yaml", "--prompt", "999"], "--prompt counts from 0, and there are"),
    (["eval", "{student}", "--prompts", "void.jsonl", "--verifier", "numeric"], "no such file of prompts: void.jsonl"),
    (["eval", "runs/none/model", *EVAL], "model: there is no folder runs/none/model"),
    (["eval", "./none", *EVAL, "--engine", "vllm"], "model: there is no folder ./none"),
    (["eval", "{student}", "--prompts", "prompts.jsonl", "--verifier", "nobody"], "a verifier is one of"),
    (
        ["eval", "{student}", "--prompts", "prompts.jsonl", "--verifier", "numeric", "--max-completion-length", "64"],
        "leaves no room for a prompt in the 64 positions of the model",
    ),
    (["eval"], "the following arguments are required: model (trb eval --help says more)"),
    (["eval", "{student}", "--limit", "few"], "argument --limit: must be a whole number of at least 1, got 'few'"),
    (["eval", "{student}", "--prompts", "prompts.jsonl"], "--verifier is required without --suite"),
    (["eval", "{student}", "--suite", "void.yaml"], "cannot read void.yaml: No such file or directory"),
    (["fly"], "invalid choice: 'fly'"),
    (["info", "--verbose"], "unrecognized arguments: --verbose"),
    (["demo", "--steps", "0"], "argument --steps: must be a whole number of at least 1, got '0'"),
    (["demo", "--epsilon", "-1"], "trb_epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got -1.0"),
    (["demo", "--draft_length", "few"], "draft_length must be 'auto', 0 for lockstep"),
    (["eval", "{student}", *EVAL, "--output", "."], "--output . must be a file, got a folder or a device"),
    (["eval", "{student}", *EVAL, "--output", "prompts.jsonl"], "exists and is not of this evaluation; name another"),
    (["eval", "{student}", "{student}", *EVAL], "several models need --suite"),
    (["train"], "model_name_or_path (the student) is not set"),
    (["train", "--learning_rate", "-1"], "learning_rate must be a number >= 0, and finite, got -1.0"),
    (["train", "--report_to", "none", "--seed", "-1", "--resume", "config.yaml"], "seed must be a whole number with 0"),
    (["probe", "config.yaml", "--eval_verifier", "numeric", "--epsilon", "inf"], "must be finite KL budgets above 0"),
    (
        ["probe", "config.yaml", "--eval_verifier", "numeric", "--lengths", "2", "--output", "prompts.jsonl/probe"],
        "Not a directory: 'prompts.jsonl/probe'",
    ),
    (["train", "config.yaml", "more.yaml"], "unrecognized arguments: more.yaml"),
    (["demo", "--output", "prompts.jsonl"], "prompts.jsonl"),
    (["train", "void.yaml"], "cannot read void.yaml: No such file or directory"),
    (["train", "."], "cannot read .: Is a directory"),
    (["probe", "void.yaml"], "cannot read void.yaml"),
    (["compare", "void.yaml"], "cannot read void.yaml"),
]


@pytest.mark.parametrize(
    ("words", "message"), OTHERS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_other_commands_refuse_in_one_line(
    words: list[str], message: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(config)
    Path("finished").mkdir()
    Path("finished/metrics.jsonl").write_text('{"step": 1, "trb/reverse_kl": 0.5}\n', encoding="utf-8")
    words = [word.format(student=config["model_name_or_path"]) for word in words]
    assert message in refusal(capsys, *words)


@pytest.mark.parametrize("output", [".", "prompts.jsonl"])
def test_the_record_of_an_evaluation_is_looked_at_before_a_model_is_loaded(
    output: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trbext.evaluation.subjects.OwnModels.load", None)  # a call ends in another line
    assert f"{output} " in refusal(capsys, "eval", config["model_name_or_path"], *EVAL, "--output", output)


def test_output_that_nobody_reads_or_that_cannot_be_written_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs as `trb train --fields | head -1` and `trb info > /dev/full`: the interpreter flushes once more at its
    end."""
    for words in (["train", "--fields"], ["info"]):
        reader, writer = os.pipe()
        os.close(reader)
        for target, code, said in ((writer, 0, ""), ("/dev/full", 1, "trb: cannot write to standard output: No space")):
            with open(target, "w", encoding="utf-8") as output, monkeypatch.context() as patch:
                patch.setattr(sys, "stdout", output)
                assert main(words) == code
                output.flush()
            err = capsys.readouterr().err
            assert err.startswith(said)
            assert err.count("\n") == bool(said)


def test_without_the_extra_the_commands_name_it_and_info_works() -> None:
    """The state is that after a plain `pip install trbext`, which brings only torch."""
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(OF_THE_EXTRA - {'numpy'})}, None))\n"  # torch looks for numpy
        "from trbext.cli import main\n"
        "for command in ('train a', 'eval a', 'compare a', 'probe a', 'demo', 'plot a'):\n"
        "    assert main(command.split()) == 2\n"
        "assert main(['info']) == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 6, lines
    assert all(re.fullmatch(r"trb: trb \w+ needs \w+, which is .* pip install 'trbext.*", line) for line in lines)


def test_the_extra_is_what_pyproject_says() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (block,) = re.findall(r"^train = \[(.*?)^\]", text, re.S | re.M)
    names = set(re.findall(r'"([a-z0-9-]+)', block))
    assert {"yaml" if name == "pyyaml" else name for name in names} == OF_THE_EXTRA


def test_every_text_file_is_opened_with_an_encoding() -> None:
    """Ruff's PLW1514 checks only what it knows to be a path."""
    bare = []
    for folder in ("trbext", "benchmarks", "build_support", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(call, ast.Call) and isinstance(call.func, (ast.Attribute, ast.Name)):
                    name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
                    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                    named = {keyword.arg for keyword in call.keywords}
                    binary = name == "open" and any("b" in mode for mode in modes)
                    binary |= ast.unparse(call.func) == "os.open"  # a descriptor
                    if name in ("open", "read_text", "write_text") and "encoding" not in named and not binary:
                        bare.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not bare
