"""Puts the findings of a study in sentences: which differences are resolved, and what that can mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..p_value_text import p_value
from .contrasts import LEVEL, Contrast, seeds_needed, smallest_p
from .declaration import Metric, Study
from .findings import Findings
from .views import VIEWS

VIEW_TITLES = {
    "final": "At the end",
    "best": "Best checkpoint",
    "area": "Mean over training",
    "equal_teacher_tokens": "At equal teacher tokens",
    "equal_seconds": "At equal seconds",
}


def number(metric: Metric, value: float, *, signed: bool = False) -> str:
    """Formats a value or difference of the metric: shares in percent, others with three decimals."""
    if not math.isfinite(value):
        return "n/a"
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f} %" if metric.is_share else f"{value:{sign}.3f}"


def difference(metric: Metric, contrast: Contrast) -> str:
    """Formats a contrast as "+2.1 points [+0.4, +3.8]", its interval in brackets."""
    values = (contrast.mean, contrast.low, contrast.high)
    scale, form = (100, "{:+.1f}") if metric.is_share else (1, "{:+.3f}")
    mean, low, high = (form.format(scale * value) if math.isfinite(value) else "n/a" for value in values)
    return f"{mean}{' points' if metric.is_share else ''} [{low}, {high}]"


def _relation(p: float) -> str:
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"


def view_sentences(metric: Metric, contrasts: Sequence[Contrast]) -> list[str]:
    """Returns a sentence for each resolved difference of a view, and one sentence for all others."""
    sentences = []
    for contrast in contrasts:
        if contrast.resolved:
            good = (contrast.mean > 0) == (metric.better == "higher")
            sentences.append(
                f"{contrast.run} is {'better' if good else 'worse'} than {contrast.reference}: "
                f"{difference(metric, contrast)}, corrected p {_relation(contrast.p_holm)}."
            )
    unresolved = [contrast for contrast in contrasts if not contrast.resolved]
    if not sentences:
        sentences.append("No difference is resolved.")
    elif unresolved:
        named = ", ".join(f"{contrast.run} against {contrast.reference}" for contrast in unresolved)
        sentences.append(f"Not resolved: {named}.")
    return sentences


def warnings_of(findings: Findings) -> list[str]:
    """Says what a reader must know before the numbers.

    Args:
        findings: What the study found.

    Returns:
        A sentence for each of: missing runs, runs without a finite value, verifier errors, too few seeds.
    """
    found = []
    if findings.missing_runs:
        found.append(
            f"Incomplete: {findings.missing_runs} of {findings.declared_runs} runs are missing. Stopping a study when "
            "its differences please makes false findings likelier than the p-values say."
        )
    lost = findings.runs_without_a_value
    if lost:
        named = ", ".join(f"{label} seed {seed}" for label, seed in lost)
        found.append(f"Without a finite value in some view, and left out of its differences: {named}.")
    if findings.verifier_errors:
        found.append(f"The verifier raised on {findings.verifier_errors} completions, which count as wrong.")
    power = power_sentence(findings.contrasts[findings.study.metric.name]["final"])
    return [*found, power] if power else found


def power_sentence(contrasts: Sequence[Contrast]) -> str | None:
    """Returns a warning if no difference could be resolved, whatever the runs show; None if one could."""
    seeds, comparisons = max((c.n for c in contrasts), default=0), len(contrasts)
    if smallest_p(seeds, comparisons) < LEVEL:
        return None
    plural = "" if comparisons == 1 else "s"
    return (
        f"With {seeds} seeds and {comparisons} comparison{plural} the smallest corrected p that exists is "
        f"{smallest_p(seeds, comparisons):.2g}, so no difference can be resolved, however large, with "
        f"fewer than {seeds_needed(comparisons)} seeds."
    )


def planned_power(study: Study) -> str | None:
    """Returns the warning of `power_sentence` before anything has run."""
    placeholder = Contrast("", "", len(study.seeds), 0.0, 0.0, 0.0, 1.0, 1.0)
    return power_sentence([placeholder] * len(study.contrasts))


def caveats(study: Study) -> list[str]:
    """Returns sentences on what intervals and p-values cover and what they do not."""
    seeds = len(study.seeds)
    return [
        f"The unit is the seed ({seeds} of them). A seed decides the order of the prompts, for the built-in task the "
        "prompts themselves, and the sampling of rollouts and evaluations. All runs of a seed share it, and "
        "differences are taken within it.",
        "Not covered: another student, another teacher, another task, another set of held-out prompts (all runs are "
        "judged on the same ones). Learning rate and the like are those of the base for every run, tuned for none.",
        "Intervals are bootstrap intervals (BCa) of the mean difference, 95 % each, not jointly. With few seeds they "
        "are too short: of normal differences they cover about 85 % with 5 seeds, 89 % with 8, 91 % with 10. P-values "
        f"are those of the exact sign-flip test, corrected by Holm for all {len(study.contrasts)} comparisons of a "
        f"view. A difference is called resolved if the corrected p is below {LEVEL} and the interval excludes 0.",
        "Views are different questions, not independent confirmations, and the correction is within a view, not "
        "across views or metrics. The metric declared before the runs is the first one.",
        "Best checkpoint takes the best of each run's evaluations on the very prompts it is judged on, as the paper "
        "does: its values are too good by the noise of one evaluation.",
        "At equal cost, runs are read before their learning rate has come down unless they are the cheapest. Seconds "
        "depend on the machine and on what else ran on it; tokens count positions a model computed, not their price.",
        "Not resolved does not mean equal: the interval says how large a difference remains possible.",
    ]


def view_meaning(study: Study, name: str) -> str:
    """Returns what a view reads, for this study."""
    if name == "final":
        return f"mean of the last {study.final_evaluations} evaluations"
    return VIEWS[name]
