"""Statistics that more than one kind of study reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): controls the chance of any false finding among them."""
    order = np.argsort(p, kind="stable")
    corrected, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[int(index)] = largest
    return corrected


def p_value(p: float) -> str:
    """Three decimals; p is never 0."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
