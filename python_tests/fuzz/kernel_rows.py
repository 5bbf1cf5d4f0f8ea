"""Runs random rows through the CUDA kernels' PTX on the interpreter, and checks every answer against float64.

    python -m python_tests.fuzz.kernel_rows --rows 6000    # minutes; needs nvcc, but no GPU

The rows are those of `python -m python_tests.fuzz`, with 1 to 700 tokens, in clusters of 1 to 6 blocks of
sm_90 or sm_100. Special functions are wrong by up to 2^-22, as on a GPU. The exit status is 1 if any row fails.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import replace

import torch

from python_tests.cuda.ptx_rows import PtxOperators
from trbext import reference

from .random_rows import Batch, batch_of
from .solved_rows import CELL, Faults, at, infeasible, not_maximal

WIDEST, ELEMENTS, MOST_ROWS = 700, 30_000, 96
ERROR = 2.0**-22  # relative, of the special functions


def check(batch: Batch) -> Faults:
    """Marks the rows whose answer by the kernels is wrong: kind of fault -> [N] bool."""
    student, teacher, epsilon, uniform, heat = (
        batch.student, batch.teacher, batch.epsilon, batch.uniform, batch.temperature
    )  # fmt: skip
    ranks, wide = 1 + batch.number % 3, batch.number % 2 == 1
    arch = (90, 100)[batch.number // 2 % 2]
    kernels = PtxOperators(arch, ranks=ranks << wide, sections=1 if wide else 2, approx_error=ERROR)
    drawn = kernels.sample(student, teacher, epsilon, uniform=uniform, temperature=heat)
    fault = reference.rows_at_fault(student, teacher) | ~(epsilon >= 0)
    drawable = ~fault & (uniform >= 0) & (uniform < 1)
    beta = drawn.beta.nan_to_num(0.0)
    kl = torch.where(beta > 0, reference.behavior_kl(student, teacher, beta, heat), 0.0)
    log_mu = reference.behavior_log_probs(student, teacher, beta, heat)
    cumulative = log_mu.exp().cumsum(-1)
    token = drawn.token.clamp(min=0)
    upper = at(cumulative, token) / cumulative[:, -1]
    lower = upper - at(log_mu.exp(), token) / cumulative[:, -1]
    return {
        "NaN without a fault": drawable & drawn.beta.isnan(),
        "a fault without NaN": fault & ~drawn.beta.isnan(),
        "infeasible": drawable & infeasible(kl, epsilon),
        "not maximal": drawable & not_maximal(student, teacher, heat, epsilon, beta, kl),
        "reported KL": drawable & ~((drawn.kl - kl).abs() <= 1e-5 + 1e-4 * kl),
        "token of another cell": drawable & ~((lower - CELL <= uniform) & (uniform <= upper + CELL)),
    }


def rows_of(batch: Batch) -> Batch:
    """Returns the batch's first rows, as many as the interpreter runs in seconds."""
    few = slice(0, MOST_ROWS)
    return replace(
        batch, student=batch.student[few], teacher=batch.teacher[few], epsilon=batch.epsilon[few],
        uniform=batch.uniform[few], family=batch.family[few],
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Checks batches until there were enough rows, and prints the faults by kind; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m python_tests.fuzz.kernel_rows", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=6000, help="how many at least (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="only the batch of this number")
    options = parser.parse_args(arguments)
    rows, faults, number = 0, Counter[str](), options.batch or 0
    while rows < options.rows:
        batch = rows_of(batch_of(options.seed, number, WIDEST, ELEMENTS))
        for name, where in check(batch).items():
            faults[name] += int(where.sum())
            for row in where.nonzero()[:, 0].tolist():
                family, epsilon = batch.family[row], float(batch.epsilon[row])
                print(f"{name}: --seed {options.seed} --batch {number}, row {row} of {family}, epsilon {epsilon:g}")
        rows, number = rows + len(batch), number + 1
        if options.batch is not None:
            break
    print(f"{rows} rows: {sum(faults.values())} faults {dict(faults)}")
    return int(faults.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
