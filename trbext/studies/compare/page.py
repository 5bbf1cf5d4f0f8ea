"""One HTML file of a study: findings in words and tables, figures inline, nothing fetched from anywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from markupsafe import Markup, escape
from numpy.typing import NDArray

from ..statistics import p_value
from .contrasts import Contrast
from .declaration import Metric, Study
from .figures import Picture
from .measurements import COSTS, RunResult
from .views import VIEWS
from .wording import VIEW_TITLES, caveats, difference, number, power_sentence, view_meaning, view_sentences

Values = dict[str, dict[str, dict[tuple[str, int], float]]]  # by metric, view, (run, seed)
Contrasts = dict[str, dict[str, list[Contrast]]]


def write_page(
    study: Study,
    declared: dict[str, Any],
    results: Sequence[RunResult],
    values: Values,
    contrasts: Contrasts,
    pictures: Sequence[Picture],
    path: Path,
) -> None:
    """Write the page; `path` is the .html file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trbext.studies.compare", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        study=study,
        warnings=warnings_of(study, results, values, contrasts),
        sections=[_section(study, metric, values[metric.name], contrasts[metric.name]) for metric in study.metrics],
        curves=_inline(pictures, "curve-"),
        forests=_inline(pictures, "contrasts-"),
        diagnostics=[_svg(p) for p in pictures if not p.name.startswith(("curve-", "contrasts-"))],
        costs=_costs(study, results),
        caveats=caveats(study),
        declaration=yaml.safe_dump(declared, sort_keys=False),
        versions=", ".join(f"{name} {version(name)}" for name in ("trbext", "torch", "transformers", "trl")),
    )
    path.write_text(page, encoding="utf-8")


def warnings_of(study: Study, results: Sequence[RunResult], values: Values, contrasts: Contrasts) -> list[str]:
    """What a reader must know before believing anything: runs that are missing, fail to be numbers, cannot decide."""
    found = []
    missing = len(study.runs) * len(study.seeds) - len(results)
    if missing:
        found.append(
            f"Incomplete: {missing} of {len(study.runs) * len(study.seeds)} runs are missing. Looking at an unfinished "
            "study and stopping where it pleases makes false findings likelier than the p-values say."
        )
    lost = {run for views in values.values() for by_run in views.values() for run, v in by_run.items() if np.isnan(v)}
    if lost:
        named = ", ".join(f"{label} seed {seed}" for label, seed in sorted(lost))
        found.append(f"Without a finite value in some view, and left out of its differences: {named}.")
    errors = sum(result.verifier_errors for result in results)
    if errors:
        found.append(f"The verifier raised on {errors} completions, which count as wrong.")
    power = power_sentence(study, contrasts[study.metric.name]["final"])
    return [*found, power] if power else found


def _section(
    study: Study,
    metric: Metric,
    values: dict[str, dict[tuple[str, int], float]],
    contrasts: dict[str, list[Contrast]],
) -> dict[str, Any]:
    views = [
        {
            "title": VIEW_TITLES[view],
            "meaning": view_meaning(study, view),
            "sentences": view_sentences(metric, contrasts[view]),
            "rows": [_row(study, metric, run.label, values[view], contrasts[view]) for run in study.runs],
        }
        for view in VIEWS
    ]
    return {"metric": metric, "views": views, "summary": _summary(study, metric, values, contrasts)}


def _summary(
    study: Study,
    metric: Metric,
    values: dict[str, dict[tuple[str, int], float]],
    contrasts: dict[str, list[Contrast]],
) -> list[dict[str, Any]]:
    """The views side by side: a row per run, each cell its mean and its difference to the first reference."""
    rows = []
    for run in study.runs:
        cells = []
        for view in VIEWS:
            own = _finite(values[view], run.label)
            found = next((c for c in contrasts[view] if (c.run, c.reference) == (run.label, study.references[0])), None)
            cells.append(
                {
                    "value": number(metric, float(own.mean())) if len(own) else "n/a",
                    "difference": difference(metric, found) if found else "",
                    "resolved": found is not None and found.resolved,
                }
            )
        rows.append({"run": run.label, "cells": cells, "kind": "reference" if run.label == study.references[0] else ""})
    return rows


def _finite(values: dict[tuple[str, int], float], run: str) -> NDArray[np.float64]:
    return np.array([value for (label, _), value in values.items() if label == run and np.isfinite(value)])


def _row(
    study: Study, metric: Metric, run: str, values: dict[tuple[str, int], float], contrasts: list[Contrast]
) -> dict[str, Any]:
    own = _finite(values, run)
    spread = f" ± {number(metric, float(own.std(ddof=1)))}" if len(own) > 1 else ""
    cells = []
    for reference in study.references:
        contrast = next((c for c in contrasts if (c.run, c.reference) == (run, reference)), None)
        if contrast is None:
            cells += ["", "", ""]
        else:
            cells += [difference(metric, contrast), p_value(contrast.p), p_value(contrast.p_holm)]
    resolved = any(c.resolved for c in contrasts if c.run == run)
    return {
        "run": run,
        "seeds": len(own),
        "value": f"{number(metric, float(own.mean()))}{spread}" if len(own) else "n/a",
        "cells": cells,
        "kind": "resolved" if resolved else "reference" if run in study.references else "",
    }


def _costs(study: Study, results: Sequence[RunResult]) -> list[list[str]]:
    means = {
        run.label: {
            cost: float(np.mean([r.costs[cost] for r in results if r.label == run.label])) for cost in COSTS.values()
        }
        for run in study.runs
        if any(r.label == run.label for r in results)
    }
    base = means.get(study.references[0])
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
    """The SVG without its XML header, with its title for screen readers; the page's style gives its size."""
    body = picture.svg[picture.svg.index("<svg") :]
    body = re.sub(r' (width|height)="[^"]*pt"', "", body, count=2)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    return Markup(body.replace("<svg", f'<svg role="img" aria-label="{escape(picture.title)}"', 1))
