"""Runs the commands in a locale that is not UTF-8: files are read and written as UTF-8 all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from python_tests.models.tiny_models import saved, tiny_llama, tiny_tokenizer
from python_tests.studies.study_files import BASE, declaration, pretend_finished
from python_tests.studies.study_files import write as write_study

ROOT = Path(__file__).resolve().parents[2]
# ASCII is stricter than the ISO-8859-1 of a bug report, which reads UTF-8 as other text, without an error.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONWARNDEFAULTENCODING": "1"}
COMMANDS = f"""
import sys, warnings
sys.path.insert(0, {str(ROOT)!r})
warnings.simplefilter("ignore", EncodingWarning)
warnings.filterwarnings("error", category=EncodingWarning, module=r"trbext\\b")
from trbext.cli import main
assert sys.stdout.encoding != "utf-8"
for command in (
    "train run.yaml",
    "train run.yaml --resume",
    "plot run --output plot.svg",
    "eval student --prompts prompts.jsonl --verifier numeric --max-completion-length 4 --output judged.jsonl",
    "eval student --prompts prompts.jsonl --verifier numeric --max-completion-length 4 --output judged.jsonl",
    "probe probe.yaml --output probe --lengths 2 --limit 2",
    "compare study.yaml --report",
):
    assert main(command.split()) == 0, command
"""


def test_files_are_utf_8_in_an_ascii_locale(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    for seed, name in enumerate(("student", "teacher")):
        saved(tmp_path / name, tiny_llama(seed), tokenizer)
    rows = "".join(
        json.dumps({"prompt": f"gr\u00fc {n}", "answer": n, "hint": "\u00fc"}, ensure_ascii=False) + "\n"
        for n in "1234"
    )
    (tmp_path / "prompts.jsonl").write_text(rows, encoding="utf-8")
    run: dict[str, Any] = {
        "model_name_or_path": "student",
        "teacher_model_name_or_path": "teacher",
        "prompts": "prompts.jsonl",
        "eval_prompts": "prompts.jsonl",
        "eval_verifier": "numeric",
        "system_prompt": "h\u00f6flich",
        "output_dir": "run",
        "max_completion_length": 4,
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "save_steps": 1,
        "draft_length": 3,
        "use_cpu": True,
    }
    for name in ("run", "probe"):
        text = yaml.safe_dump(run, allow_unicode=True)
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    study = declaration(tmp_path, title="\u57fa\u7ebf", base=BASE | {"system_prompt": "h\u00f6flich"})
    pretend_finished(write_study(tmp_path, study), lambda run, seed, step: seed / 10)
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], cwd=tmp_path, env={**os.environ, **ASCII}, capture_output=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert settings["system_prompt"] == "h\u00f6flich"
    judged = (tmp_path / "judged.jsonl").read_text(encoding="utf-8").splitlines()
    assert {"prompt", "sample", "completion"} <= json.loads(judged[1]).keys()
    assert "\u57fa\u7ebf" in (tmp_path / "study" / "index.html").read_text(encoding="utf-8")
