"""Tabulates the logged metrics: the names, titles, units and formats that every display of a run or a study uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Metrics = dict[str, Any]  # one line of metrics.jsonl: its optimizer step and its metrics by name
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class LoggedMetric:
    """The title, unit and format of one logged number."""

    name: str  # its key in metrics.jsonl
    title: str  # what it is, as a heading
    unit: str  # "" for a share of 1
    form: str  # of its value, for str.format
    label: str = ""  # a shorter title, for a line of figures; the title if there is none
    better: Better | None = None  # of metrics that a study may be judged by

    @property
    def heading(self) -> str:
        """The title with the unit, for a table."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def capitalized(self) -> str:
        """The title for the head of a plot."""
        return self.title[0].upper() + self.title[1:]

    def labeled(self, value: float) -> str:
        """Returns the label and the value, for a line of figures."""
        return f"{self.label or self.title} {self.form.format(value)}"


METRICS = {
    metric.name: metric
    for metric in (
        LoggedMetric("trb/epsilon", "KL budget epsilon", "nats/token", "{:.4g}", "epsilon"),
        LoggedMetric("trb/kl", "KL spent", "nats/token", "{:.4g}"),
        LoggedMetric("trb/beta_mean", "coefficient beta of the rollouts", "mean over tokens", "{:.2f}", "beta"),
        LoggedMetric("trb/reverse_kl", "reverse KL on rollouts", "nats/token", "{:.4f}", "reverse KL"),
        LoggedMetric(
            "trb/teacher_log_prob", "teacher log-prob of the rollouts", "nats/token", "{:.3f}", "teacher log-prob"
        ),
        LoggedMetric("trb/teacher_entropy", "teacher entropy on visited prefixes", "nats/token", "{:.3f}"),
        LoggedMetric("trb/rollout_length", "longest rollouts of the step", "tokens", "{:.0f}"),
        LoggedMetric("trb/kl_max", "largest KL of a token", "nats", "{:.4g}"),
        LoggedMetric("trb/tokens_per_second", "rollout speed", "tokens/second", "{:.1f}"),
        LoggedMetric("trb/acceptance", "accepted share of the drafts", "", "{:.1%}"),
        LoggedMetric("trb/tokens_per_teacher_pass", "tokens per pass of the teacher", "tokens", "{:.2f}"),
        LoggedMetric("trb/repaired_rows", "rollouts repaired in vLLM", "rollouts", "{:.0f}"),
        LoggedMetric("trb/preemptions", "preemptions in vLLM", "requests", "{:.0f}"),
        LoggedMetric("trb/sync_seconds", "sending the weights to vLLM", "seconds", "{:.2f}"),
        LoggedMetric("trb/teacher_load_seconds", "copying the teacher to its device", "seconds", "{:.2f}"),
        LoggedMetric("completions/mean_length", "completion length", "tokens", "{:.1f}"),
        LoggedMetric("eval_pass@1", "pass@1", "", "{:.1%}", better="higher"),
        LoggedMetric("eval_pass@1_runtime", "drawing the completions of pass@1", "seconds", "{:.1f}"),
        LoggedMetric("eval_pass@1_tokens_per_second", "speed of drawing them", "tokens/second", "{:.1f}"),
        LoggedMetric("eval_loss", "held-out reverse KL", "nats/token", "{:.4f}", better="lower"),
        LoggedMetric("eval_trb/teacher_log_prob", "held-out teacher log-prob", "nats/token", "{:.3f}", better="higher"),
    )
}

OF_ENGINES = ("trb/repaired_rows", "trb/preemptions", "trb/sync_seconds")  # only runs with use_vllm log them
SUMMARY = ("trb/reverse_kl", "eval_loss", "eval_pass@1", "trb/teacher_log_prob", "completions/mean_length")
PROGRESS = ("trb/epsilon", "trb/beta_mean", "trb/reverse_kl", "trb/teacher_log_prob", "eval_loss", "eval_pass@1")
JUDGES = tuple(metric.name for metric in METRICS.values() if metric.better)  # what a study may be judged by
DIAGNOSTICS = ("trb/teacher_entropy", "trb/teacher_log_prob", "trb/beta_mean")  # the paper's, of who writes prefixes


def figures(line: Metrics, names: Sequence[str] = PROGRESS) -> str:
    """Returns the metrics of `names` that a log holds, labeled, in one line; "" if it holds none."""
    return "  ".join(METRICS[name].labeled(line[name]) for name in names if line.get(name) is not None)


def first_and_last(lines: Sequence[Metrics]) -> list[tuple[str, str, str]]:
    """Returns the metrics by which a run is judged, at the first and the last log that holds each.

    Args:
        lines: Of metrics.jsonl, in order.

    Returns:
        (heading, first value, last value), each value with its optimizer step; none for a metric that was not logged.
    """
    rows = []
    for metric in (METRICS[name] for name in SUMMARY):
        found = [line for line in lines if line.get(metric.name) is not None]
        if found:
            ends = (found[0], found[-1])
            first, last = (f"{metric.form.format(line[metric.name])} (step {line['step']})" for line in ends)
            rows.append((metric.heading, first, last))
    return rows
