"""Writes the README.md beside a trained model: what it was distilled from, how, and with which results."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl.trainer.utils import get_config_model_id

from .. import __version__
from ..build_info import version_of
from ..teachers import Mixture
from ..teachers.remote.teacher import RemoteTeacher
from .config import TRBConfig
from .fields.length import LengthFields
from .fields.supervision import SupervisionFields
from .metrics.metric_table import METRICS, Metrics, first_and_last
from .schedule import duration

PAPER = {
    "title": "Trust-Region Behavior Blending for On-Policy Distillation",
    "id": "2605.31159",
    "citation": textwrap.dedent("""\
        @misc{trb2026,
            title         = {{Trust-Region Behavior Blending for On-Policy Distillation}},
            year          = 2026,
            eprint        = {2605.31159},
            archivePrefix = {arXiv},
            url           = {https://arxiv.org/abs/2605.31159},
        }"""),
}
CURVE_ROWS = 12
CURVE = {  # metric -> column, shorter than its title if that is long
    "trb/epsilon": "epsilon",
    "trb/beta_mean": "beta",
    **{name: METRICS[name].title for name in ("trb/reverse_kl", "eval_loss", "eval_pass@1")},
}


@dataclass(frozen=True)
class Provenance:
    """The names of what a run was made from: on the Hub, of folders, or of the built-in task."""

    student: str
    teacher: str
    prompts: str | None = None


def name_of(model: Any) -> str:
    """Returns the name of a model on a card: its path, or the name in its configuration; of several, all of them."""
    if isinstance(model, dict):
        return ", ".join(f"{label}: {name_of(each)}" for label, each in model.items())
    if isinstance(model, Mixture):
        return ", ".join(map(name_of, model.teachers))
    if isinstance(model, RemoteTeacher):
        return model.model
    return str(model if isinstance(model, str) else get_config_model_id(getattr(model, "config", None)) or "a model")


def write_model_card(
    folder: Path,
    made_from: Provenance,
    config: TRBConfig,
    steps: tuple[int, int],
    lines: Sequence[Metrics],
    picture: Path | None = None,
) -> None:
    """Writes README.md into `folder`, and copies the picture beside it.

    Args:
        folder: Of the model; it exists.
        made_from: The names of what the model was made from.
        config: Of the run.
        steps: Optimizer steps taken, and those of the whole run.
        lines: Of metrics.jsonl.
        picture: The curves, an image file.
    """
    name = None if picture is None else f"curves{picture.suffix}"
    if picture is not None:
        shutil.copyfile(picture, folder / str(name))
    title = Path(config.output_dir).name
    text = model_card(title, made_from, config, *steps, lines, PAPER["citation"], name)
    (folder / "README.md").write_text(text, encoding="utf-8")


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
    """Returns the card as Markdown with the Hub's metadata.

    Args:
        name: Of the run, the title.
        made_from: The names of what the model was made from.
        config: Of the run.
        steps: Optimizer steps taken.
        max_steps: Optimizer steps of the whole run.
        lines: Of metrics.jsonl.
        citation: BibTeX of the paper.
        picture: The curves, a file beside the card.
    """
    parts = [
        _front_matter(made_from),
        f"# {name}\n\nA student distilled on-policy with Trust-Region Behavior Blending ([arXiv {PAPER['id']}]"
        f"(https://arxiv.org/abs/{PAPER['id']})) "
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
        ("rollouts per step", f"{rollouts}, {config.rollouts_per_prompt} of each prompt"),
        ("longest completion, tokens", str(config.max_completion_length)),
        ("temperature", str(config.temperature)),
        ("loss", f"{config.loss_estimator} (beta {config.beta})"),
        *_changed(config, LengthFields, SupervisionFields),
        ("learning rate", f"{config.learning_rate} ({config.lr_scheduler_type.value})"),
        ("seed", str(config.seed)),
    ]


def _changed(config: TRBConfig, *kinds: type[Any]) -> list[tuple[str, str]]:
    """Returns the fields of these kinds that are not at their defaults, with their values."""
    names = [(field.name, field.default) for kind in kinds for field in dataclasses.fields(kind)]
    return [(name, str(getattr(config, name))) for name, default in names if getattr(config, name) != default]


def _curve(lines: Sequence[Metrics]) -> str:
    """Returns some evenly spaced steps, the last among them, and the latest value of each figure by then."""
    names = [name for name in CURVE if any(line.get(name) is not None for line in lines)]
    steps = sorted({line["step"] for line in lines})
    if not names or not steps:
        return ""
    shown = {steps[round(i * (len(steps) - 1) / (CURVE_ROWS - 1))] for i in range(CURVE_ROWS)}
    rows: list[tuple[str, ...]] = []
    latest: dict[str, str] = {}
    for index, step in enumerate(steps):
        for line in lines:
            if line["step"] == step:
                logged = [name for name in names if line.get(name) is not None]
                latest |= {name: METRICS[name].form.format(line[name]) for name in logged}
        if step in shown or index == len(steps) - 1:
            rows.append((str(step), *(latest.get(name, "") for name in names)))
    return _table(("step", *(CURVE[name] for name in names)), rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)
