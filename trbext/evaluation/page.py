"""Writes the page of a suite: one table and one plot of all checkpoints, in one file that fetches nothing."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from .plot import plot_checkpoints
from .report import Report, interval, sentences

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; white-space: nowrap; }
th, td { padding: 0.3rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } svg { width: 100%; height: auto; } small { color: #666; }
"""


def write_page(report: Report, folder: Path) -> None:
    """Writes index.html and pass_at_1.svg.

    Args:
        report: The figures.
        folder: Where to.
    """
    svg = plot_checkpoints(report, folder / "pass_at_1.svg")
    parts = [
        "<h1>pass@1 of checkpoints</h1>",
        *(f"<p>{html.escape(sentence)}.</p>" for sentence in sentences(report)),
        svg,
        *_tables(report),
        "<p><small>Intervals are of 95 %, by a bootstrap over prompts. Differences are tested prompt by prompt, and "
        "corrected by Holm for all pairs. "
        f"Written by trbext {html.escape(version('trbext'))}.</small></p>",
    ]
    title = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>trb eval</title>'
    page = f'<!doctype html><html lang="en"><head>{title}<style>{STYLE}</style></head><body>\n'
    (folder / "index.html").write_text(page + "\n".join(parts) + "\n</body></html>\n", encoding="utf-8")


def _tables(report: Report) -> list[str]:
    heads = ["checkpoint", *report.completions, "mean", "tokens/s", "weights"]
    rows = []
    for model, found in report.checkpoints.items():
        shares = [interval(values["pass@1"]) for values in found.benchmarks.values()]
        rows.append(
            [model, *shares, interval(found.mean), f"{found.tokens_per_second:.0f}", (found.weights or "")[:12]]
        )
    tables = ["<h2>pass@1</h2>", _table(heads, rows)]
    for benchmark, (prompts, samples) in report.completions.items():
        # A checkpoint without any answer has no majority. The order is that of one that has all.
        names = max((list(found.benchmarks[benchmark]) for found in report.checkpoints.values()), key=len)
        rows = []
        for model, found in report.checkpoints.items():
            values = found.benchmarks[benchmark]
            cells = [interval(values[name], share=name != "length") if name in values else "" for name in names]
            rows.append(
                [model, *cells, f"{found.length_p90[benchmark]:.0f}", str(found.verifier_errors[benchmark] or "")]
            )
        tables.append(f"<h2>{html.escape(benchmark)}: {prompts} prompts x {samples} samples</h2>")
        tables.append(_table(["checkpoint", *map(_words, names), "length, 90 %", "verifier errors"], rows))
    return tables


def _words(statistic: str) -> str:
    return {"length": "length, mean (tokens)", "cut": "cut off by the limit"}.get(statistic, statistic)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><tr>{head}</tr>\n{body}\n</table></div>'
