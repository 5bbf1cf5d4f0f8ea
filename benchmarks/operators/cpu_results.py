"""Defines the records of the benchmark of the operators on a CPU, and the bars that the kernels must meet there.

The bars are ratios of medians, at V = 151,936 and two threads unless a line says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..harness.bars import Bar, quotient
from .decoding import Decoding

OPERATORS = ("solve", "sample", "blend")
FLOORS = ("read", "fill", "new fill")
PEERS = (
    "2 log_softmax",
    "Newton 10",
    "Newton stop",
    "Newton compiled",
    "bisection 16",
    "bisection 50",
    "brentq",
)
METHODS = (*FLOORS, *OPERATORS, *PEERS)

BAR_VOCAB, BAR_ROWS, BAR_THREADS = 151_936, 64, 2
DTYPES = ("float32", "bfloat16")
DECODING_SHARE = 0.01


@dataclass(frozen=True)
class Case:
    """Logits [rows, vocab] of one dtype, from one source."""

    inputs: str  # "synthetic" or "SmolLM2"
    vocab: int
    rows: int
    dtype: str


@dataclass(frozen=True)
class Record:
    """One method in one case."""

    inputs: str
    vocab: int
    rows: int
    dtype: str
    budget: str  # "binding", "not binding", or "any" for a method whose time does not depend on it
    epsilon: float | None  # nats
    method: str
    median_s: float | None  # seconds per call; None if the method was left out
    fastest_s: float | None
    repetitions: int
    us_per_row: float | None
    gb_per_s: float | None  # only for the methods in FLOORS
    sweeps_mean: float | None  # over the rows, if the method is an operator
    sweeps_max: int | None
    note: str

    @property
    def case(self) -> Case:
        """The case that was timed."""
        return Case(self.inputs, self.vocab, self.rows, self.dtype)


def median(records: Iterable[Record], case: Case, method: str, budget: str = "binding") -> float | None:
    """Returns the median seconds of a call of `method`, None if it was not measured.

    Args:
        records: The measurements.
        case: What was timed.
        method: The method's name.
        budget: "binding" or "not binding".
    """
    if method not in METHODS:
        raise KeyError(method)
    found = [r for r in records if r.case == case and r.method == method and r.budget in (budget, "any")]
    return found[0].median_s if found else None


def bars(records: Sequence[Record], decoding: Decoding | None) -> list[Bar]:
    """Returns every bar, measured or not.

    Args:
        records: The measurements.
        decoding: The share of the operator in a decoding step, if it was measured.

    Returns:
        The bars, in the order of their printing.
    """

    def ratio(dtype: str, above: str, below: str) -> float | None:
        case = Case("synthetic", BAR_VOCAB, BAR_ROWS, dtype)
        return quotient(median(records, case, above), median(records, case, below))

    # 1. Compare the peers with solve.
    faster = (
        ("float32", "Newton 10", 60),
        ("float32", "bisection 16", 100),
        ("float32", "Newton compiled", 30),
        ("float32", "2 log_softmax", 4),
        ("bfloat16", "2 log_softmax", 2),
    )
    found = [
        Bar(f"{peer} / solve, N = {BAR_ROWS} {dtype}", ratio(dtype, peer, "solve"), True, k)
        for dtype, peer, k in faster
    ]
    # 2. Compare solve with the read.
    for dtype, limit, stretch in (("float32", 4.5, 3.0), ("bfloat16", 8.0, 5.5)):
        text, measured = f"solve / read, N = {BAR_ROWS} {dtype}", ratio(dtype, "solve", "read")
        found += [Bar(text, measured, False, limit), Bar(f"stretch: {text}", measured, False, stretch)]
    # 3. Compare a single row with two log_softmax, at the V that is worst.
    for dtype in DTYPES:
        single = [case for case in _cases(records) if case.rows == 1 and case.dtype == dtype]
        ratios = [
            (taken, case.vocab)
            for case in single
            if (taken := quotient(median(records, case, "solve"), median(records, case, "2 log_softmax")))
        ]
        worst = max(ratios, default=(None, 0))
        at = f", worst at V = {worst[1]}" if ratios else ""
        found.append(Bar(f"solve / 2 log_softmax, N = 1 {dtype}, any V{at}", worst[0], False, 1))
    # 4. Compare sample and blend with solve.
    for dtype in DTYPES:
        found.append(Bar(f"sample / solve, N = {BAR_ROWS} {dtype}", ratio(dtype, "sample", "solve"), False, 1.1))
    for dtype in DTYPES:
        for fill in ("fill", "new fill"):
            case = Case("synthetic", BAR_VOCAB, BAR_ROWS, dtype)
            times = [median(records, case, name) for name in ("blend", "solve", fill)]
            blend, solve, filled = times
            extra = None if blend is None or solve is None or filled is None else (blend - solve) / filled
            # The bar uses the fill in place, because blend is not to blame for the page faults of a fresh tensor.
            prefix = "for comparison: " if fill == "new fill" else ""
            found.append(Bar(f"{prefix}(blend - solve) / {fill}, N = {BAR_ROWS} {dtype}", extra, False, 3))
    # 5. Compare the operator with the decoding step that it is part of.
    text = "sample's share of a decoding step of the SmolLM2 pair"
    if decoding:
        text += f", batch {decoding.batch}"
    found.append(Bar(text, decoding.share if decoding else None, False, DECODING_SHARE))
    return found


def _cases(records: Iterable[Record]) -> list[Case]:
    return [case for case in dict.fromkeys(record.case for record in records) if case.inputs == "synthetic"]
