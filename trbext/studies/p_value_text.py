"""Formats p-values, for `trb compare` and `trb probe`."""

from __future__ import annotations


def p_value(p: float) -> str:
    """Formats a p-value with three decimals; it is never 0."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
