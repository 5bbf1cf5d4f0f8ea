"""Writes study files of `trb compare`, and finished runs made up from numbers instead of trained."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

BASE: dict[str, Any] = {
    "model_name_or_path": "demo:student",
    "teacher_model_name_or_path": "demo:teacher",
    "prompts": "demo",
    "eval_prompts": "demo:eval",
    "eval_verifier": "demo",
    "max_completion_length": 32,
    "max_steps": 40,
    "eval_strategy": "steps",
    "eval_steps": 10,
    "eval_on_start": True,
    "bf16": False,
    "use_cpu": True,
}


def declaration(folder: Path, **changes: Any) -> dict[str, Any]:
    """Writes a study of four runs and six seeds in `folder`/study."""
    declared: dict[str, Any] = {
        "title": "Made up",
        "output_dir": str(folder / "study"),
        "metric": {"name": "eval_pass@1", "better": "higher", "final_evaluations": 2},
        "reference": "OPD",
        "seeds": [1, 2, 3, 4, 5, 6, 7, 8],
        "base": copy.deepcopy(BASE),
        "runs": {
            "OPD": {"rollout_policy": "student"},
            "TRB": {"rollout_policy": "trb", "sweep": {"trb_epsilon": [0.1, 0.5]}},
            "Fixed": {"rollout_policy": "trb", "trb_schedule": "constant"},
        },
    }
    return declared | changes


def write(folder: Path, declared: dict[str, Any]) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(declared, sort_keys=False))
    return path


def pretend_finished(
    path: Path, pass_at_1: Callable[[str, int, int], float], teacher_tokens: Callable[[str], int] = lambda run: 100
) -> None:
    """Finishes every run of the study file, with pass@1 of (run, seed, step) and the teacher tokens that a step
    costs."""
    from trbext.studies.compare.declaration import read_study
    from trbext.studies.compare.folder import open_folder

    study, declared = read_study(path)
    open_folder(study, declared)
    for run in study.runs:
        for seed in study.seeds:
            folder = study.run_folder(run, seed)
            folder.mkdir(parents=True)
            lines = []
            for step in range(study.max_steps + 1):
                cost = {
                    "compute/seconds": 0.5 * step,
                    "compute/student_tokens": 200 * step,
                    "compute/teacher_tokens": teacher_tokens(run.label) * step,
                }
                if step:
                    entropy = 0.5 + 0.01 * seed
                    lines.append({"step": step, "trb/teacher_entropy": entropy, "trb/teacher_log_prob": -1.0, **cost})
                if step % study.eval_every == 0:
                    lines.append({"step": step, "eval_pass@1": pass_at_1(run.label, seed, step), **cost})
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (folder / "finished.json").write_text("{}")
