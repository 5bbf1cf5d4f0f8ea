"""Runs `trb train` on tiny models in this process, and reads what the runs leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from python_tests.models.tiny_models import saved, tiny_llama, tiny_tokenizer
from trbext.cli import main
from trbext.runs.folder import RunFolder


def tiny_run(folder: Path, **fields: Any) -> dict[str, Any]:
    """Returns the settings of a run of a second in `folder`/run, whose models and prompts are written to `folder`."""
    tokenizer, prompts = tiny_tokenizer(), folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"{n}+{n % 7}=", "answer": str(n)}) + "\n" for n in range(10, 50)]
    prompts.write_text("".join(lines))
    return {
        "model_name_or_path": saved(folder / "student", tiny_llama(1), tokenizer),
        "teacher_model_name_or_path": saved(folder / "teacher", tiny_llama(2), tokenizer),
        "prompts": str(prompts),
        "output_dir": str(folder / "run"),
        "max_completion_length": 4,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "trb_epsilon": 0.5,
        "trb_warmup_steps": 3,
        "draft_length": 2,  # "auto" depends on the clock: a second run from the start may round differently
        "save_steps": 2,
        "use_cpu": True,
        "bf16": False,
        **fields,
    }


def written(path: Path, settings: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(path)


def trb(*words: str) -> int:
    try:
        return main(words)
    except SystemExit as stop:  # argparse
        return int(stop.code or 0)


def trained(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.model / "model.safetensors")


def same_weights(one: RunFolder, two: RunFolder) -> bool:
    first, second = trained(one), trained(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def repeatable(run: RunFolder) -> list[dict[str, Any]]:
    """Returns the metrics that a repeated run must repeat: all but times, speeds and the summary of the last
    session."""
    clock = ("step_time", "tokens_per_second", "runtime", "per_second", "seconds")
    lines = [line for line in run.read_metrics() if "train_runtime" not in line]
    return [{k: v for k, v in line.items() if not any(word in k for word in clock)} for line in lines]
