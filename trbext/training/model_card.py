"""The README.md beside a trained model: what it was distilled from, how, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..build_info import version_of
from .config import TRBConfig
from .metric_table import Metrics, first_and_last
from .schedule import duration

PAPER = "https://arxiv.org/abs/2605.31159"
CURVE_ROWS = 12
CURVE = (
    ("epsilon", "trb/epsilon", "{:.4g}"),
    ("beta", "trb/beta_mean", "{:.2f}"),
    ("reverse KL on rollouts", "trb/reverse_kl", "{:.4f}"),
    ("held-out reverse KL", "eval_loss", "{:.4f}"),
    ("pass@1", "eval_pass@1", "{:.1%}"),
)


@dataclass(frozen=True)
class Provenance:
    """How a run calls what it was made from: Hub names, folders, or the built-in task's."""

    student: str
    teacher: str
    prompts: str | None = None


def model_card(
    name: str,
    made_from: Provenance,
    config: TRBConfig,
    steps: int,
    max_steps: int,
    lines: Sequence[Metrics],
    citation: str,
    picture: str | None = None,
) -> str:
    """The card as Markdown with the Hub's metadata.

    Args:
        steps: optimizer steps taken, of `max_steps`.
        lines: of metrics.jsonl.
        picture: the curves, a file beside the card.
    """
    parts = [
        _front_matter(made_from),
        f"# {name}\n\nA student distilled on-policy with Trust-Region Behavior Blending ([arXiv 2605.31159]({PAPER})) "
        f"by trbext {__version__}.",
        _table(("", ""), _facts(made_from, config, steps, max_steps)),
    ]
    rows = first_and_last(lines)
    if rows:
        parts.append("## Results\n\n" + _table(("", "first", "last"), rows))
    curve = _curve(lines)
    if curve or picture:
        image = f"![curves over optimizer steps]({picture})\n\n" if picture else ""
        parts.append("## Curve\n\n" + image + curve)
    versions = ", ".join(f"{package} {version_of(package)}" for package in ("torch", "transformers", "trl"))
    parts.append(f"Made with {versions}.")
    parts.append(f"## Citation\n\n```bibtex\n{citation}\n```")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _front_matter(made_from: Provenance) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [trl, distillation, on-policy, trb]"]
    if made_from.student.count("/") == 1 and not Path(made_from.student).exists():  # a name on the Hub
        lines.append(f"base_model: {made_from.student}")
    return "\n".join(["---", *lines, "---"])


def _facts(made_from: Provenance, config: TRBConfig, steps: int, max_steps: int) -> list[tuple[str, str]]:
    rollouts = config.train_batch_size * config.world_size * config.gradient_accumulation_steps
    facts = [("student", made_from.student), ("teacher", made_from.teacher)]
    if made_from.prompts is not None:
        facts.append(("prompts", made_from.prompts))
    facts.append(("rollout policy", config.rollout_policy))
    if config.rollout_policy == "trb":
        warmup = duration(config.trb_warmup_steps, max_steps)
        facts += [
            ("KL budget epsilon at the first step, nats/token", str(config.trb_epsilon)),
            ("warmup K, optimizer steps until the budget is 0", str(warmup)),
            ("schedule of the budget", config.trb_schedule),
        ]
        if isinstance(config.trb_schedule_points, dict):
            facts.append(("points of the schedule", str(config.trb_schedule_points)))
    elif config.rollout_policy == "fixed":
        facts.append(("KL budget epsilon, nats/token", str(config.trb_epsilon)))
    return [
        *facts,
        ("optimizer steps", f"{steps} of {max_steps}" if steps != max_steps else str(steps)),
        ("rollouts a step", f"{rollouts}, {config.rollouts_per_prompt} of each prompt"),
        ("longest completion, tokens", str(config.max_completion_length)),
        ("temperature", str(config.temperature)),
        ("loss", f"{config.loss_estimator} (beta {config.beta})"),
        ("learning rate", f"{config.learning_rate} ({config.lr_scheduler_type.value})"),
        ("seed", str(config.seed)),
    ]


def _curve(lines: Sequence[Metrics]) -> str:
    """Some evenly spaced steps, the last among them, and the latest value of each figure by then."""
    names = [(title, name, form) for title, name, form in CURVE if any(line.get(name) is not None for line in lines)]
    steps = sorted({line["step"] for line in lines})
    if not names or not steps:
        return ""
    shown = {steps[round(i * (len(steps) - 1) / (CURVE_ROWS - 1))] for i in range(CURVE_ROWS)}
    rows: list[tuple[str, ...]] = []
    latest: dict[str, str] = {}
    for index, step in enumerate(steps):
        for line in lines:
            if line["step"] == step:
                latest |= {name: form.format(line[name]) for _, name, form in names if line.get(name) is not None}
        if step in shown or index == len(steps) - 1:
            rows.append((str(step), *(latest.get(name, "") for _, name, _ in names)))
    return _table(("step", *(title for title, _, _ in names)), rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)
