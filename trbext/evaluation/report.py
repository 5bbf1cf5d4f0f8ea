"""Puts together what an evaluation found: figures with intervals, checkpoints compared, and the one that is chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .outcome import Floats, Outcome
from .statistics import Choice, Difference, Estimate, differences, estimate, honest_choice, paper_choice

Outcomes = Mapping[str, Outcome]  # by benchmark


@dataclass(frozen=True)
class Checkpoint:
    """The figures of one checkpoint."""

    benchmarks: dict[str, dict[str, Estimate]]  # by benchmark and statistic
    length_p90: dict[str, float]  # by benchmark, tokens
    verifier_errors: dict[str, int]  # by benchmark
    mean: Estimate  # of pass@1 over the benchmarks
    tokens_per_second: float  # of drawing
    weights: str | None  # a digest of the weights that answered; None if the decoder does not tell it


@dataclass(frozen=True)
class Report:
    """The figures of all checkpoints, in the order given."""

    checkpoints: dict[str, Checkpoint]
    completions: dict[str, tuple[int, int]]  # prompts and samples of each benchmark
    differences: list[Difference] = field(default_factory=list)
    paper: Choice | None = None  # None of one checkpoint
    honest: Choice | None = None  # None also if a benchmark has one sample per prompt

    @classmethod
    def of(cls, outcomes: Mapping[str, Outcomes], weights: Mapping[str, str | None]) -> Report:
        """Computes a report.

        Args:
            outcomes: Of each checkpoint on each benchmark.
            weights: The digest of each checkpoint's weights, where it is known.
        """
        right = {model: [_pass_at_1(o) for o in found.values()] for model, found in outcomes.items()}
        checkpoints = {
            model: Checkpoint(
                {
                    name: {statistic: estimate([values]) for statistic, values in outcome.values().items()}
                    for name, outcome in found.items()
                },
                {name: outcome.length_p90() for name, outcome in found.items()},
                {name: outcome.verifier_errors for name, outcome in found.items()},
                estimate(right[model]),
                tokens_per_second(found),
                weights.get(model),
            )
            for model, found in outcomes.items()
        }
        counts = {name: (o.prompts, o.samples) for name, o in next(iter(outcomes.values())).items()}
        several, halves = len(outcomes) > 1, all(samples > 1 for _, samples in counts.values())
        return cls(
            checkpoints,
            counts,
            differences(right) if several else [],
            paper_choice(right) if several else None,
            honest_choice(_halves(outcomes, 0), _halves(outcomes, 1)) if several and halves else None,
        )

    def pass_at_1(self) -> dict[str, dict[str, float]]:
        """pass@1 by checkpoint and benchmark; "mean" is the mean of the benchmarks."""
        return {
            model: {name: values["pass@1"].value for name, values in found.benchmarks.items()}
            | {"mean": found.mean.value}
            for model, found in self.checkpoints.items()
        }

    def write(self, folder: Path) -> None:
        """Writes pass_at_1.json, which holds pass@1 only, and results.json, which holds everything."""
        _write_json(folder / "pass_at_1.json", self.pass_at_1())
        _write_json(folder / "results.json", asdict(self))


def tokens_per_second(outcomes: Outcomes) -> float:
    """Tokens in a second of drawing, over all sessions that drew some of the benchmarks.

    A session counts to its last completion for one of them, with all that it drew by then, also for others.
    """
    drawn: dict[str, tuple[float, int]] = {}
    for outcome in outcomes.values():
        for session, each in outcome.drawn.items():
            drawn[session] = max(drawn.get(session, each), each)
    total = sum(seconds for seconds, _ in drawn.values())
    return sum(tokens for _, tokens in drawn.values()) / total if total > 0 else float("nan")


def sentences(report: Report) -> list[str]:
    """Returns what the checkpoints' comparison says, in words."""
    if report.paper is None:
        return []
    found = [f"best by the suite mean: {_choice(report.paper)} (chosen and measured on the same completions, as the "
             "paper does, so it flatters itself)"]  # fmt: skip
    if report.honest is not None:
        found.append(
            f"chosen by the even samples: {_choice(report.honest)} on the odd ones, which had no part in the choice"
        )
    else:
        found.append("no honest choice: a benchmark has one completion per prompt, which cannot be halved")
    resolved = [d for d in report.differences if d.resolved]
    if not resolved:
        found.append("no two checkpoints differ by more than chance")
    for d in sorted(resolved, key=lambda d: -abs(d.estimate.value)):
        better, worse = (d.first, d.second) if d.estimate.value > 0 else (d.second, d.first)
        size, low, high = abs(d.estimate.value), *sorted((abs(d.estimate.low), abs(d.estimate.high)))
        found.append(f"{better} is better than {worse} by {size:.1%} [{low:.1%}, {high:.1%}], p = {d.p_holm:.2g}")
    return found


def _choice(choice: Choice) -> str:
    return f"{choice.checkpoint}, {interval(choice.pass_at_1)}"


def interval(found: Estimate, *, share: bool = True) -> str:
    """Formats an estimate with its interval, a share as a percentage."""
    if share:
        return f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"
    return f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"


def _pass_at_1(outcome: Outcome) -> Floats:
    return np.asarray(outcome.correct.mean(1), dtype=np.float64)


def _halves(outcomes: Mapping[str, Outcomes], which: int) -> dict[str, list[Floats]]:
    return {model: [outcome.half(which) for outcome in found.values()] for model, found in outcomes.items()}


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
