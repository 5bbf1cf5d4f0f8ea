"""What the loops of the CUDA kernels consist of: the one place where the model of their speed takes its counts from.

Instructions are SASS instructions a pair of logits (one token of both models), as `python python_tests/cuda_tables.py`
counts them on sm_90 for bfloat16; `python_tests/test_cuda_static.py` holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Loop:
    """One loop over a row, a pair of logits."""

    issue: float  # instructions of any kind: each takes an issue slot
    mufu: float = 0.0  # of which exponentials
    fp32: float = 0.0  # of which float32 arithmetic


@dataclass(frozen=True)
class Counts:
    """A row's work: load and scan once, the first sweep once, an exact sweep for each further one, and between sweeps
    a decision that all CTAs of the row wait for."""

    load: Loop = Loop(3.03)  # device memory to shared memory, with both maxima
    first: Loop = Loop(18.0, mufu=2, fp32=13)  # power sums at two betas
    direct: Loop = Loop(14.0, mufu=1, fp32=10)  # an exact sweep, of ordinary budgets
    stable: Loop = Loop(30.0, mufu=2, fp32=23)  # the same without cancellation, of budgets below about 0.015 nats
    decision_cycles: float = (
        1800.0  # from the last pair of a sweep to the first of the next: reduction, exchange, solver
    )
    # A CTA executes for a row outside the loops. A guess of what ptxas makes of the 7,000 instructions of PTX, moves
    # among them, that a row of one chunk takes on the interpreter (python_tests/cuda_tables.py).
    fixed_warp_instructions: float = 4500.0


MEASURED = Counts()
