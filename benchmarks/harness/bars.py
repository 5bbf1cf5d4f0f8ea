"""Compares the measurements of a benchmark with the bars that its subject must meet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console


@dataclass(frozen=True)
class Bar:
    """`ratio` must be at least or at most `limit`; None if it was not measured."""

    text: str
    ratio: float | None
    at_least: bool
    limit: float

    @property
    def verdict(self) -> str:
        """One of "met", "missed" and "not measured"."""
        if self.ratio is None:
            return "not measured"
        return "met" if (self.ratio >= self.limit if self.at_least else self.ratio <= self.limit) else "missed"

    def __str__(self) -> str:
        measured = "" if self.ratio is None else f"{self.ratio:.3g} "
        return f"{self.text}: {measured}({'>=' if self.at_least else '<='} {self.limit:g}) {self.verdict}"


def quotient(above: float | None, below: float | None) -> float | None:
    """Returns `above` / `below`, None if one of them was not measured."""
    return above / below if above and below else None


def print_bars(bars: Iterable[Bar], title: str, console: Console) -> None:
    """Prints a title and a line per bar.

    Args:
        bars: The bars.
        title: The line above them.
        console: Where to print.
    """
    console.print(title)
    for bar in bars:
        console.print(f"  {bar}", highlight=False)
