"""Distills the same weak student twice, by vanilla on-policy distillation and by TRB, side by side: `trb demo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..runs.folder import RunFolder
from ..runs.plots import plot_runs
from ..runs.settings import parse_settings
from ..runs.train import train_run
from ..training.metrics.metric_table import METRICS, Metrics

BATCH = 32
HELD_OUT_PROMPTS = 128

RUNS = {"OPD": "student", "TRB": "trb"}  # name -> rollout_policy


def walk_through(
    output: Path, *, steps: int = 240, epsilon: float = 0.5, seed: int = 0, draft_length: str = "0"
) -> None:
    """Trains both runs, prints their comparison and plots their curves. An interrupted demonstration continues.

    Args:
        output: Gets the run folders opd/ and trb/, and plot.png.
        steps: Optimizer steps of each run, with 32 prompts each.
        epsilon: KL budget at step 0, nats; it falls to 0 over the first third of the steps.
        seed: Of prompts and sampling.
        draft_length: Of the TRB run's rollouts, as in `trb train`.

    Raises:
        UsageError: A folder holds a run of other settings.
        Interrupted: A signal stopped a run.
    """
    console = Console()
    console.print(
        "Counting sort: given eight digits, count each digit, then write them sorted (30 tokens). A teacher that "
        f"solves it is distilled into a student that cannot yet, {steps} optimizer steps each way.\n",
        highlight=False,
        soft_wrap=True,
    )
    results: list[tuple[str, list[Metrics]]] = []
    for name, policy in RUNS.items():
        folder = RunFolder(output / name.lower())
        arguments, config, settings = parse_settings(_settings(folder, policy, steps, epsilon, seed, draft_length))
        train_run(arguments, config, settings, resume="auto", followed=name != list(RUNS)[-1])
        results.append((name, folder.read_metrics()))
    plot_runs(
        results, output / "plot.png", f"Counting sort, one seed, epsilon {epsilon} to 0 in {_warmup(steps)} steps"
    )
    console.print(_comparison(results, _warmup(steps)))
    console.print(
        "Shown: under TRB the teacher finds the early rollouts far more likely, because it helps to write them.\n"
        "Not shown: that TRB ends better. After one seed, a gap between two pass@1 is noise.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"Curves: {output / 'plot.png'}   runs: {output}", highlight=False, soft_wrap=True, markup=False)


def _warmup(steps: int) -> int:
    return max(1, steps // 3)


def _settings(
    folder: RunFolder, policy: str, steps: int, epsilon: float, seed: int, draft_length: str
) -> dict[str, Any]:
    return {
        "output_dir": str(folder.path),
        "model_name_or_path": "demo:student",
        "teacher_model_name_or_path": "demo:teacher",
        "prompts": "demo",
        "eval_prompts": "demo:eval",
        "eval_prompts_limit": HELD_OUT_PROMPTS,
        "eval_verifier": "demo",
        "rollout_policy": policy,
        "trb_epsilon": epsilon,
        "trb_warmup_steps": _warmup(steps),
        "draft_length": draft_length,
        "max_completion_length": 32,
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": HELD_OUT_PROMPTS,
        "learning_rate": 1.5e-3,
        "warmup_steps": min(10, steps // 4),
        "eval_on_start": True,
        "eval_strategy": "steps",
        "eval_steps": max(1, steps // 8),
        "save_steps": max(1, steps // 4),
        "save_total_limit": 1,
        "seed": seed,
        "use_cpu": True,
        "bf16": False,
    }


def _comparison(results: Sequence[tuple[str, Sequence[Metrics]]], warmup: int) -> Table:
    table = Table(title="Student before and after, and who wrote the early rollouts")
    table.add_column("")
    judged = [METRICS[name].title for name in ("eval_pass@1", "eval_loss")]
    columns = (*judged, "teacher log-prob of the warmup's rollouts", "beta in the warmup")
    for column in columns:
        table.add_column(column, justify="right")
    for name, lines in results:
        early = [line for line in lines if 0 < line["step"] <= warmup]
        table.add_row(
            name,
            _change(lines, "eval_pass@1", METRICS["eval_pass@1"].form),
            _change(lines, "eval_loss", "{:.3f}"),  # a digit less than elsewhere: two values share a narrow column
            *(METRICS[name].form.format(_mean(early, name)) for name in ("trb/teacher_log_prob", "trb/beta_mean")),
        )
    return table


def _change(lines: Sequence[Metrics], name: str, form: str) -> str:
    values = [line[name] for line in lines if line.get(name) is not None]
    return f"{form.format(values[0])} -> {form.format(values[-1])}"


def _mean(lines: Sequence[Metrics], name: str) -> float:
    values = [line[name] for line in lines if line.get(name) is not None]
    return sum(values) / len(values) if values else float("nan")
