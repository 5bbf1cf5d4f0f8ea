"""Writes the findings of a study as one HTML file: words, tables and inline figures, nothing fetched from anywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from ..p_value_text import p_value
from .declaration import Metric
from .figures import Picture
from .findings import Findings
from .views import VIEWS
from .wording import VIEW_TITLES, caveats, difference, number, view_meaning, view_sentences, warnings_of


def write_page(findings: Findings, pictures: Sequence[Picture], path: Path) -> None:
    """Writes the page of a study.

    Args:
        findings: What the study found.
        pictures: Its figures.
        path: The .html file to write.
    """
    study = findings.study
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trbext.studies.compare", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        study=study,
        warnings=warnings_of(findings),
        sections=[_section(findings, metric) for metric in study.metrics],
        curves=_inline(pictures, "curve-"),
        forests=_inline(pictures, "contrasts-"),
        diagnostics=[_svg(p) for p in pictures if not p.name.startswith(("curve-", "contrasts-"))],
        costs=_costs(findings),
        caveats=caveats(study),
        declaration=yaml.safe_dump(dict(findings.declared), sort_keys=False),
        versions=", ".join(f"{name} {version(name)}" for name in ("trbext", "torch", "transformers", "trl")),
    )
    path.write_text(page, encoding="utf-8")


def _section(findings: Findings, metric: Metric) -> dict[str, Any]:
    """Returns all views of one metric."""
    study, contrasts = findings.study, findings.contrasts[metric.name]
    views = [
        {
            "title": VIEW_TITLES[view],
            "meaning": view_meaning(study, view),
            "sentences": view_sentences(metric, contrasts[view]),
            "rows": [_row(findings, metric, view, run.label) for run in study.runs],
        }
        for view in VIEWS
    ]
    return {"metric": metric, "views": views, "summary": _summary(findings, metric)}


def _summary(findings: Findings, metric: Metric) -> list[dict[str, Any]]:
    """Returns the views side by side: per run a row of its means and its differences to the first reference."""
    rows = []
    reference = findings.study.references[0]
    for run in findings.study.runs:
        cells = []
        for view in VIEWS:
            contrast = findings.contrast(metric, view, run.label, reference)
            cells.append(
                {
                    "value": number(metric, findings.mean(metric, view, run.label)),
                    "difference": difference(metric, contrast) if contrast else "",
                    "resolved": contrast is not None and contrast.resolved,
                }
            )
        rows.append({"run": run.label, "cells": cells, "kind": "reference" if run.label == reference else ""})
    return rows


def _row(findings: Findings, metric: Metric, view: str, run: str) -> dict[str, Any]:
    """Returns one run in one view: mean and standard deviation, and its comparison with each reference."""
    references, own = findings.study.references, findings.finite(metric, view, run)
    spread = f" ± {number(metric, float(own.std(ddof=1)))}" if len(own) > 1 else ""
    cells = []
    for reference in references:
        contrast = findings.contrast(metric, view, run, reference)
        if contrast is None:
            cells += ["", "", ""]
        else:
            cells += [difference(metric, contrast), p_value(contrast.p), p_value(contrast.p_holm)]
    resolved = any(c.resolved for c in findings.contrasts[metric.name][view] if c.run == run)
    return {
        "run": run,
        "seeds": len(own),
        "value": f"{number(metric, findings.mean(metric, view, run))}{spread}",
        "cells": cells,
        "kind": "resolved" if resolved else "reference" if run in references else "",
    }


def _costs(findings: Findings) -> list[list[str]]:
    means = findings.mean_costs()
    base = means.get(findings.study.references[0])
    rows = []
    for label, costs in means.items():
        cells = []
        for cost, value in costs.items():
            relative = f" ({value / base[cost]:.2f}x)" if base and base[cost] else ""
            cells.append((f"{value:.1f}" if cost == "seconds" else f"{value:,.0f}") + relative)
        rows.append([label, *cells])
    return rows


def _inline(pictures: Sequence[Picture], prefix: str) -> list[Markup]:
    return [_svg(picture) for picture in pictures if picture.name.startswith(prefix)]


def _svg(picture: Picture) -> Markup:
    """Returns the SVG without its XML header, with its title for screen readers; the page's style gives its size."""
    body = picture.svg[picture.svg.index("<svg") :]
    body = re.sub(r' (width|height)="[^"]*pt"', "", body, count=2)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    return Markup(body.replace("<svg", f'<svg role="img" aria-label="{escape(picture.title)}"', 1))
