"""The figures by which a run is judged, at its first and at its last log of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Metrics = dict[str, Any]  # one log: its optimizer step and its metrics by name

# title, name in metrics.jsonl, format
FIGURES = (
    ("reverse KL on rollouts, nats/token", "trb/reverse_kl", "{:.4f}"),
    ("reverse KL on held-out prompts, nats/token", "eval_loss", "{:.4f}"),
    ("pass@1", "eval_pass@1", "{:.1%}"),
    ("teacher log-prob of rollouts, nats/token", "trb/teacher_log_prob", "{:.3f}"),
    ("completion length, tokens", "completions/mean_length", "{:.1f}"),
)


def first_and_last(lines: Sequence[Metrics]) -> list[tuple[str, str, str]]:
    """Of each figure that was logged: its title, its first value and its last, with their steps."""
    rows = []
    for title, name, form in FIGURES:
        found = [line for line in lines if line.get(name) is not None]
        if found:
            first, last = (f"{form.format(line[name])} (step {line['step']})" for line in (found[0], found[-1]))
            rows.append((title, first, last))
    return rows
