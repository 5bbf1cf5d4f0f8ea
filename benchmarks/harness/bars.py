"""What the kernels are held to (V = 151,936 and two threads unless a line says otherwise), as ratios of medians."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .results import Case, Record, median

if TYPE_CHECKING:  # it needs transformers, which the bars of a GPU do without
    from ..operators.decoding import Decoding

VOCAB, ROWS, THREADS = 151_936, 64, 2
DTYPES = ("float32", "bfloat16")
DECODING_SHARE = 0.01


@dataclass(frozen=True)
class Bar:
    """`ratio` must be at least or at most `limit`; None where it was not measured."""

    text: str
    ratio: float | None
    at_least: bool
    limit: float

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return "not measured"
        return "met" if (self.ratio >= self.limit if self.at_least else self.ratio <= self.limit) else "missed"

    def __str__(self) -> str:
        measured = "" if self.ratio is None else f"{self.ratio:.3g} "
        return f"{self.text}: {measured}({'>=' if self.at_least else '<='} {self.limit:g}) {self.verdict}"


def bars(records: Sequence[Record], decoding: Decoding | None) -> list[Bar]:
    """Every bar, measured or not."""

    def ratio(dtype: str, above: str, below: str) -> float | None:
        return _quotient(records, Case("synthetic", VOCAB, ROWS, dtype), above, below)

    faster = (
        ("float32", "Newton 10", 60),
        ("float32", "bisection 16", 100),
        ("float32", "Newton compiled", 30),
        ("float32", "2 log_softmax", 4),
        ("bfloat16", "2 log_softmax", 2),
    )
    found = [
        Bar(f"{peer} / solve, N = {ROWS} {dtype}", ratio(dtype, peer, "solve"), True, k) for dtype, peer, k in faster
    ]
    for dtype, limit, stretch in (("float32", 4.5, 3.0), ("bfloat16", 8.0, 5.5)):
        text, measured = f"solve / read, N = {ROWS} {dtype}", ratio(dtype, "solve", "read")
        found += [Bar(text, measured, False, limit), Bar(f"stretch: {text}", measured, False, stretch)]
    for dtype in DTYPES:
        single = [case for case in _cases(records) if case.rows == 1 and case.dtype == dtype]
        ratios = [
            (quotient, case.vocab)
            for case in single
            if (quotient := _quotient(records, case, "solve", "2 log_softmax"))
        ]
        worst = max(ratios, default=(None, 0))
        at = f", worst at V = {worst[1]}" if ratios else ""
        found.append(Bar(f"solve / 2 log_softmax, N = 1 {dtype}, any V{at}", worst[0], False, 1))
    for dtype in DTYPES:
        found.append(Bar(f"sample / solve, N = {ROWS} {dtype}", ratio(dtype, "sample", "solve"), False, 1.1))
    for dtype in DTYPES:
        for fill in ("fill", "new fill"):
            case = Case("synthetic", VOCAB, ROWS, dtype)
            times = [median(records, case, name) for name in ("blend", "solve", fill)]
            blend, solve, filled = times
            extra = None if blend is None or solve is None or filled is None else (blend - solve) / filled
            # The bar is the fill in place; what a fresh tensor costs in page faults is not blend's doing.
            prefix = "for comparison: " if fill == "new fill" else ""
            found.append(Bar(f"{prefix}(blend - solve) / {fill}, N = {ROWS} {dtype}", extra, False, 3))
    text = "sample's share of a decoding step of the SmolLM2 pair"
    if decoding:
        text += f", batch {decoding.batch}"
    found.append(Bar(text, decoding.share if decoding else None, False, DECODING_SHARE))
    return found


def _quotient(records: Iterable[Record], case: Case, above: str, below: str) -> float | None:
    numerator, denominator = median(records, case, above), median(records, case, below)
    return numerator / denominator if numerator is not None and denominator is not None else None


def _cases(records: Iterable[Record]) -> list[Case]:
    return [case for case in dict.fromkeys(record.case for record in records) if case.inputs == "synthetic"]
