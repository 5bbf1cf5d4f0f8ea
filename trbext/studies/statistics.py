"""Corrects and formats p-values, for `trb compare` and `trb probe`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p: Sequence[float]) -> list[float]:
    """Corrects p-values by Holm's step-down method (1979), which controls the chance of any false finding among
    them."""
    order = np.argsort(p, kind="stable")
    corrected, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[int(index)] = largest
    return corrected


def p_value(p: float) -> str:
    """Formats a p-value with three decimals; it is never 0."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
