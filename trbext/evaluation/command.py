"""Measures pass@1 of one model over a set of prompts: `trb eval`. If it writes a file, it can be resumed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.progress import track

from ..data.demo_models import model_path
from ..data.encoding import encode_prompts
from ..data.prompt_checks import check_encodings
from ..data.prompts import load_prompts
from ..models.loading import load_for_inference, load_tokenizer
from ..models.positions import position_limit
from .pass_at_k import evaluate_pass_at_1, pass_at_k
from .verifiers import Verifier, check_verified, check_verifier, verifier_by_name


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, its tokenizer, and options of its chat template."""

    model: Any
    tokenizer: Any
    template: Mapping[str, Any]

    @classmethod
    def load(cls, name: str, template: Mapping[str, Any] | None = None) -> LoadedModel:
        """Loads a model and its tokenizer onto the GPU if there is one.

        Args:
            name: A folder, a name on the Hub, or a built-in model.
            template: Options of the chat template.

        Raises:
            ValueError: It cannot be loaded.
            OSError: It cannot be read.
        """
        path = model_path(name)
        tokenizer = load_tokenizer(path, "model")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(load_for_inference(path, "model", device), tokenizer, template or {})


@dataclass(frozen=True)
class PassAt1:
    """The mean over prompts of the share of right completions, and its standard error over prompts."""

    pass_at_1: float
    standard_error: float
    prompts: int
    samples: int
    verifier_errors: int

    def __str__(self) -> str:
        raised = f", {self.verifier_errors} of them wrong because the verifier raised" if self.verifier_errors else ""
        return (
            f"pass@1 {self.pass_at_1:.4f} +- {self.standard_error:.4f} (standard error over prompts), "
            f"{self.prompts} prompts x {self.samples} samples{raised}"
        )


def evaluate_model(options: argparse.Namespace) -> float:
    """Measures and prints pass@1 of one model on one set of prompts.

    Args:
        options: Those of `trb eval` (see its help).

    Returns:
        pass@1.

    Raises:
        ValueError: A model, prompts or verifier cannot be used, or the file is of another evaluation.
        OSError: One of them cannot be read or written.
    """
    if len(options.model) != 1:
        raise ValueError(f"several models need --suite, got {' '.join(options.model)}")
    for name in ("prompts", "verifier"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is required without --suite")
    verifier = verifier_by_name(options.verifier)
    prompts = load_prompts(options.prompts, split=options.split, limit=options.limit)
    check_verifier(verifier, prompts, options.verifier)  # before minutes of loading weights
    (model,) = options.model
    result = evaluate_prompts(
        LoadedModel.load(model),
        prompts,
        verifier,
        settings={"model": model, "prompts": options.prompts},
        samples=options.samples or 1,
        max_completion_length=options.max_completion_length or 512,
        batch_size=options.batch_size,
        seed=options.seed,
        output=options.output,
    )
    print(result)
    return result.pass_at_1


def evaluate_prompts(
    loaded: LoadedModel,
    prompts: Dataset,
    verifier: Verifier,
    *,
    settings: dict[str, Any],
    samples: int,
    max_completion_length: int,
    batch_size: int,
    seed: int,
    output: Path | None,
) -> PassAt1:
    """Measures pass@1 of a model over prompts, with a progress bar on standard error.

    Random numbers depend only on the seed and the batch, so a resumed evaluation gives the same completions.

    Args:
        loaded: The model.
        prompts: Rows with "prompt" and what the verifier reads.
        verifier: Judges the completions.
        settings: What else the evaluation depends on; "prompts" is the source of the prompts.
        samples: Completions per prompt.
        max_completion_length: In tokens.
        batch_size: Completions decoded at a time.
        seed: Of the sampling.
        output: A file that gets a line per prompt as soon as it is judged; prompts that it holds are not repeated.

    Returns:
        pass@1 and its standard error.

    Raises:
        ValueError: `output` is a file of another evaluation, a prompt cannot be used, or the verifier always raised.
    """
    # 1. Find what an earlier evaluation with the same settings has judged.
    settings = settings | {
        "samples": samples,
        "max_completion_length": max_completion_length,
        "seed": seed,
        "prompts_per_batch": max(1, batch_size // samples),
    }
    lines = _previous(output, settings)
    # 2. Check the prompts, and begin the file.
    positions = {"model": position_limit(loaded.model.config)}
    source, template = str(settings["prompts"]), loaded.template
    check_encodings(prompts, source, loaded.tokenizer, template, max_completion_length, positions)
    if output is not None and not lines:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")
    # 3. Sample and judge the rest, a batch at a time, and write each batch as soon as it is judged.
    step = int(settings["prompts_per_batch"])
    first_error: str | None = None
    starts = range(len(lines), len(prompts), step)
    for start in track(starts, description="prompts", console=Console(stderr=True), disable=len(starts) < 2):
        rows = [prompts[i] for i in range(start, min(start + step, len(prompts)))]
        result = evaluate_pass_at_1(
            loaded.model,
            loaded.tokenizer,
            rows,
            verifier,
            samples=samples,
            max_new_tokens=max_completion_length,
            batch_size=batch_size,
            generator=torch.Generator(loaded.model.device).manual_seed(seed * 1_000_003 + start),
            encode=lambda texts: encode_prompts(loaded.tokenizer, texts, **loaded.template),
        )
        judged: list[dict[str, Any]] = [
            {"prompt": row["prompt"], "correct": correct, "completions": completions}
            for row, correct, completions in zip(rows, result.correct, result.completions, strict=True)
        ]
        first_error = first_error or result.first_error
        if result.verifier_errors:
            judged[0]["verifier_errors"] = result.verifier_errors
        lines += judged
        if output is not None:
            with output.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in judged)
    shares = [pass_at_k(samples, int(line["correct"]), 1) for line in lines]
    mean = sum(shares) / len(shares)
    error = (sum((s - mean) ** 2 for s in shares) / max(1, len(shares) - 1) / len(shares)) ** 0.5
    errors = sum(line.get("verifier_errors", 0) for line in lines)
    check_verified(errors, samples * len(lines), first_error)
    return PassAt1(mean, error, len(lines), samples, errors)


def _previous(output: Path | None, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the judged prompts of an earlier, interrupted evaluation with the same settings, whole batches only."""
    if output is None or not output.exists():
        return []
    if not output.is_file():
        raise ValueError(f"--output {output} must be a file, got a folder or a device")
    texts = output.read_text(encoding="utf-8").splitlines()
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
    output.write_text("\n".join(texts[: 1 + whole]) + "\n", encoding="utf-8")
    return lines[:whole]
