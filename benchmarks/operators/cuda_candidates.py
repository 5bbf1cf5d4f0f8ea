"""Makes the methods that the benchmark on a GPU times: the operators, and code that a user could write instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import trbext
from trbext import TopK

from ..harness.correctness import REFERENCE_ROWS, Truth, check_top_k
from . import peers
from .cuda_results import TOP_K, K
from .cuda_timing import Clock

DISTINCT = 64  # rows; larger batches repeat them
BISECTION_ERROR = 2.0**-15  # of 16 evaluations, the first one at beta = 1


@dataclass(frozen=True)
class Candidate:
    """A method that solves the case, by any launch and from any state of the caches."""

    name: str
    call: Callable[[], Any]
    check: Callable[[Any], None] | None = None
    note: str = ""


@dataclass(frozen=True)
class Batch:
    """Rows that repeat the first `DISTINCT` ones, and the answers for those."""

    student: Tensor
    teacher: Tensor
    uniform: Tensor
    epsilon: float
    truth: Truth

    @property
    def top_k(self) -> TopK:
        """The teacher's `K` most probable tokens [N, K]."""
        first = self.teacher[:DISTINCT].float().log_softmax(-1).topk(min(K, self.teacher.shape[1]))
        repeated = torch.arange(len(self.teacher), device=self.teacher.device) % DISTINCT
        return TopK(first.indices[repeated], first.values[repeated])

    def right(self, name: str, beta: Tensor, kl: Tensor, resolution: float = 0.0) -> None:
        """Raises WrongAnswer unless beta [N] and kl [N] are right in every row.

        Args:
            name: What the error calls the method.
            beta: [N].
            kl: [N], nats.
            resolution: The error of beta that the method may have.
        """
        for got_beta, got_kl in zip(beta.cpu().split(DISTINCT), kl.cpu().split(DISTINCT), strict=True):
            self.truth.check(name, got_beta, got_kl, resolution)


def operators(batch: Batch) -> list[Candidate]:
    """Returns solve, sample, blend, and solve with a top-k teacher, as methods."""
    student, teacher, epsilon = batch.student, batch.teacher, batch.epsilon
    top_k = batch.top_k

    def right_sample(drawn: Any) -> None:
        batch.right("trbext.sample", drawn.beta, drawn.kl)
        first = (drawn.token[:REFERENCE_ROWS].cpu(), drawn.log_prob[:REFERENCE_ROWS].cpu())
        batch.truth.check_tokens("trbext.sample", *first)

    def right_blend(blended: Any) -> None:
        batch.right("trbext.blend", blended.beta, blended.kl)
        batch.truth.check_log_probs("trbext.blend", blended.log_probs[:REFERENCE_ROWS].cpu())

    def right_top_k(solved: Any) -> None:
        few = slice(REFERENCE_ROWS)
        check_top_k(student[few].cpu(), TopK(*(x[few].cpu() for x in top_k)), epsilon, solved)

    return [
        Candidate(
            "solve",
            lambda: trbext.solve(student, teacher, epsilon),
            lambda solved: batch.right("trbext.solve", solved.beta, solved.kl),
        ),
        Candidate("sample", lambda: trbext.sample(student, teacher, epsilon, uniform=batch.uniform), right_sample),
        Candidate("blend", lambda: trbext.blend(student, teacher, epsilon), right_blend),
        Candidate(TOP_K, lambda: trbext.solve(student, top_k, epsilon), right_top_k),
    ]


def competitors(batch: Batch, clock: Clock, compiled: bool) -> list[Candidate]:
    """Returns what a user could write instead of solve.

    Args:
        batch: The rows and their answers.
        clock: Chooses the faster way to sum.
        compiled: Whether torch.compile is timed too.
    """
    student, teacher = batch.student, batch.teacher

    def solver(name: str, solve: peers.Solver, resolution: float = 0.0) -> Candidate:
        return Candidate(
            name,
            lambda: solve(student, teacher, batch.epsilon),
            lambda found: batch.right(name, found[0], found[1], resolution),
        )

    found = [Candidate("2 log_softmax", lambda: peers.two_log_softmax(student, teacher))]
    try:
        room = torch.empty(2 * student.numel(), device=student.device)  # the outputs of the others will need it
        moments = peers.Moments(*student.shape, device=str(student.device))
        del room
        choose_sums(moments, batch, clock)
        found.append(solver("Newton 10", peers.eager_newton(moments)))
        found.append(solver("bisection 16", peers.eager_bisection(moments, 16), BISECTION_ERROR))
    except torch.OutOfMemoryError:
        note = "left out: not enough GPU memory"
        found += [Candidate(name, lambda: None, note=note) for name in ("Newton 10", "bisection 16")]
    if compiled:
        candidate = solver("Newton compiled", peers.compiled_newton())
        try:
            candidate.call()
        except Exception as error:  # no compiler, no headers, no memory: each error names what is missing
            note = f"left out, torch.compile failed: {str(error).strip().splitlines()[0]}"
            candidate = Candidate("Newton compiled", candidate.call, note=note)
        found.append(candidate)
    return found


def choose_sums(moments: peers.Moments, batch: Batch, clock: Clock) -> None:
    """Chooses one batched product or separate sums, whichever is faster for this shape on this GPU.

    Args:
        moments: Is changed.
        batch: The rows.
        clock: Times both ways.
    """
    moments.load(batch.student, batch.teacher, 3)
    beta = torch.ones(len(batch.student), device=batch.student.device)
    lasted = {}
    for products in (True, False):
        moments.products = products
        moments.at(beta)
        lasted[products] = clock.seconds(clock.cool, lambda: moments.at(beta))
    moments.products = lasted[True] <= lasted[False]
