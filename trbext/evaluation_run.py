"""`trb eval`: pass@1 of one model over a set of prompts, with progress, and resumable where it writes a file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer

from .demo.shipped import model_path
from .evaluation import evaluate_pass_at_1, pass_at_k, verifier_by_name
from .prompts import load_prompts


def evaluate_model(options: argparse.Namespace) -> float:
    """Print and return pass@1 for the options of `trb eval` (see its help).

    With `--output`, a line per prompt is appended as soon as it is judged, and prompts already there are not repeated.
    Random numbers depend on the seed and the batch alone, so a resumed evaluation gives the same completions.
    ValueError, OSError: a model, prompts or verifier that cannot be loaded, or a file of another evaluation.
    """
    path = model_path(options.model)
    verifier = verifier_by_name(options.verifier)
    prompts = load_prompts(options.prompts, split=options.split, limit=options.limit)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    model.to(device).eval()
    settings = {
        "model": options.model,
        "prompts": options.prompts,
        "samples": options.samples,
        "max_completion_length": options.max_completion_length,
        "seed": options.seed,
        "prompts_per_batch": max(1, options.batch_size // options.samples),
    }
    lines = _previous(options.output, settings)
    if options.output is not None and not lines:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"settings": settings}) + "\n")
    step = int(settings["prompts_per_batch"])
    starts = range(len(lines), len(prompts), step)
    for start in track(starts, description="prompts", console=Console(stderr=True), disable=len(starts) < 2):
        rows = [prompts[i] for i in range(start, min(start + step, len(prompts)))]
        result = evaluate_pass_at_1(
            model,
            tokenizer,
            rows,
            verifier,
            samples=options.samples,
            max_new_tokens=options.max_completion_length,
            batch_size=options.batch_size,
            generator=torch.Generator(device).manual_seed(options.seed * 1_000_003 + start),
        )
        judged = [
            {"prompt": row["prompt"], "correct": correct, "completions": completions}
            for row, correct, completions in zip(rows, result.correct, result.completions, strict=True)
        ]
        lines += judged
        if options.output is not None:
            with options.output.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in judged)
    shares = [pass_at_k(options.samples, int(line["correct"]), 1) for line in lines]
    mean = sum(shares) / len(shares)
    error = (sum((s - mean) ** 2 for s in shares) / max(1, len(shares) - 1) / len(shares)) ** 0.5
    print(
        f"pass@1 {mean:.4f} +- {error:.4f} (standard error over prompts), "
        f"{len(lines)} prompts x {options.samples} samples"
    )
    return mean


def _previous(output: Path | None, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Judged prompts of an earlier, interrupted evaluation with the same settings, whole batches only."""
    if output is None or not output.exists():
        return []
    texts = output.read_text().splitlines()
    try:
        header = json.loads(texts[0]) if texts else {}
    except json.JSONDecodeError:
        header = {}
    if header.get("settings") != settings:
        raise ValueError(f"{output} exists and is not of this evaluation; name another --output")
    lines = []
    for text in texts[1:]:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # cut short by a kill
            break
    whole = len(lines) - len(lines) % int(settings["prompts_per_batch"])
    output.write_text("\n".join(texts[: 1 + whole]) + "\n")
    return lines[:whole]
