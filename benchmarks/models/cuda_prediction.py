"""Defines what the model of the resident kernels predicts of one case."""

from __future__ import annotations

from dataclasses import dataclass

TITLE = "MODEL, not a measurement"


@dataclass(frozen=True)
class Prediction:
    """A prediction for N rows. Cycles are those of one row while every place of the GPU is busy."""

    gpu: str
    vocab: int
    rows: int
    element_bytes: int
    cluster: int
    ctas_per_sm: int
    sweeps: float
    stable: bool
    instructions_per_pair: float
    mufu_per_pair: float
    rows_in_flight: int
    load_cycles: float
    first_cycles: float  # with the competition of the SM's other rows, as `exact`
    exact_cycles: float
    decision_cycles: float
    residence_us: float
    overlap: float  # mean number of the SM's rows that do arithmetic at the same time
    memory_busy: float  # 0 to 1, as the next three
    issue_busy: float
    mufu_busy: float
    fp32_busy: float
    bound: str
    time_us: float
    roofline_us: float  # each input read once at the rate of a copy
    roofline_percent: float
