"""Implements `trbext.solve` as well as a user can without a kernel, and calls that bound the time from below.

A solver needs finite, contiguous [N, V] logits, and finds the largest beta with KL(mu_beta || pi_S) <= epsilon from

    x = log pi_S, D = log pi_T - log pi_S, S_k = sum exp(x + beta D) D^k, KL = beta S_1 / S_0 - log S_0.

x + beta D is a mean of two log-probabilities, never positive: the exponential needs no maximum subtracted.
The eager solvers write to [N, V] buffers made before, as a fresh one costs more in page faults than its arithmetic.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

Solver = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]  # student, teacher, epsilon -> beta [N], kl [N]

TIGHTNESS = 3e-4  # a row has converged if epsilon (1 - this) <= KL <= epsilon, which trbext promises too


class Moments:
    """S_0, S_1, S_2 of a batch of rows at any beta, in five [N, V] buffers that several solvers may use in turn."""

    products = True  # sum by one batched product with the powers; else by a sum and a multiplication in place per order

    def __init__(self, rows: int, vocab: int, device: str = "cpu") -> None:
        self.log_student, self.weights = (torch.empty(rows, vocab, device=device) for _ in range(2))
        self.powers = torch.ones(rows, 3, vocab, device=device)  # 1, D, D^2

    def load(self, student: Tensor, teacher: Tensor, orders: int) -> None:
        """Prepares S_0 up to S_(orders - 1) of this pair.

        Args:
            student: [N, V] logits.
            teacher: [N, V] logits.
            orders: How many sums are needed.
        """
        for logits, log_probs in ((student, self.log_student), (teacher, self.weights)):
            if logits.dtype != torch.float32:  # out= together with another dtype would allocate the cast
                logits = log_probs.copy_(logits)
            torch.log_softmax(logits, -1, out=log_probs)
        difference = self.powers[:, 1]
        torch.sub(self.weights, self.log_student, out=difference)
        if orders == 3:
            torch.mul(difference, difference, out=self.powers[:, 2])
        self.orders = orders

    def at(self, beta: Tensor) -> tuple[Tensor, ...]:
        """Returns S_0, S_1, ..., each [N]. Two passes write the weights, one batched product reads them."""
        torch.addcmul(self.log_student, beta[:, None], self.powers[:, 1], out=self.weights).exp_()
        if not self.products:
            sums = [self.weights.sum(-1)]
            while len(sums) < self.orders:
                sums.append(self.weights.mul_(self.powers[:, 1]).sum(-1))
            return tuple(sums)
        return torch.bmm(self.weights[:, None], self.powers[:, : self.orders].transpose(1, 2))[:, 0].unbind(-1)


def _start(student: Tensor) -> tuple[Tensor, ...]:
    """Returns beta, low, high, KL at low, frozen. The first evaluation, at the teacher, settles loose budgets."""
    rows, device = student.shape[0], student.device
    one, zero = torch.ones(rows, device=device), torch.zeros(rows, device=device)
    return one, zero, one, zero, torch.zeros(rows, dtype=torch.bool, device=device)


def _newton_update(state: tuple[Tensor, ...], moments: tuple[Tensor, ...], epsilon: float) -> tuple[Tensor, ...]:
    """Takes one safeguarded Newton step for log KL as a function of log beta. Converged rows keep their beta.

    That function is nearly a straight line, as KL ~ beta^2 Var / 2 for small budgets. A step for KL itself, or its
    root, can go from beta = 1 to a beta at which float32 has no digits of KL left. The step aims inside the tolerance
    below epsilon, because half of the steps that aim at epsilon itself would end above it.
    """
    beta, low, high, kl_low, frozen = state
    s0, s1, s2 = moments
    mean = s1 / s0
    variance = s2 / s0 - mean**2  # KL' = beta variance
    kl = beta * mean - s0.log()
    feasible = kl <= epsilon
    low, kl_low = torch.where(feasible, beta, low), torch.where(feasible, kl, kl_low)
    high = torch.where(feasible, high, beta)
    frozen = frozen | (feasible & ((beta == 1) | (kl >= epsilon * (1 - TIGHTNESS))))
    kl = kl.clamp(min=1e-3 * epsilon)
    power = (beta**2 * variance / kl).clamp(0.5, 8)  # d log KL / d log beta
    step = beta * (epsilon * (1 - TIGHTNESS / 2) / kl) ** (1 / power)
    step = torch.where((step > low) & (step < high), step, (low + high) / 2)
    return torch.where(frozen, beta, step), low, high, kl_low, frozen


def eager_newton(moments: Moments, *, iterations: int = 10, stop: bool = False) -> Solver:
    """Makes batched Newton in eager PyTorch, which runs all `iterations`, as code must that may not wait for a GPU.

    With `stop` it ends once every row has converged.

    Args:
        moments: The buffers.
        iterations: At most.
        stop: Whether to ask after each iteration if all rows have converged.
    """

    def solve(student: Tensor, teacher: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        moments.load(student, teacher, 3)
        state = _start(student)
        for _ in range(iterations):
            state = _newton_update(state, moments.at(state[0]), epsilon)
            if stop and bool(state[-1].all()):
                break
        return state[1], state[3]

    return solve


def eager_bisection(moments: Moments, steps: int) -> Solver:
    """Makes batched bisection in eager PyTorch: `steps` evaluations of KL, the first one at beta = 1."""

    def solve(student: Tensor, teacher: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        moments.load(student, teacher, 2)
        beta, low, high, kl_low, _ = _start(student)
        for _ in range(steps):
            s0, s1 = moments.at(beta)
            kl = beta * s1 / s0 - s0.log()
            feasible = kl <= epsilon
            low, kl_low = torch.where(feasible, beta, low), torch.where(feasible, kl, kl_low)
            high = torch.where(feasible, high, beta)
            beta = (low + high) / 2
        return low, kl_low

    return solve


def compiled_newton(iterations: int = 10) -> Solver:
    """Makes the same Newton from plain functions by torch.compile in its default mode.

    The first call compiles, and raises the errors of the compiler.
    """

    def solve(student: Tensor, teacher: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        log_student = student.float().log_softmax(-1)
        difference = teacher.float().log_softmax(-1) - log_student
        state = _start(student)
        for _ in range(iterations):
            weights = (log_student + state[0][:, None] * difference).exp()
            first = weights * difference
            state = _newton_update(state, (weights.sum(-1), first.sum(-1), (first * difference).sum(-1)), epsilon)
        return state[1], state[3]

    compiled: Solver = torch.compile(solve, dynamic=False)
    return compiled


def brentq(student: Tensor, teacher: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Solves row by row with scipy.optimize.brentq, in numpy float64 on one core.

    Args:
        student: [N, V] logits.
        teacher: [N, V] logits.
        epsilon: KL budget, nats.

    Returns:
        beta [N] and KL [N] in nats.
    """
    import numpy as np
    from scipy import optimize, special

    found = []
    for student_row, teacher_row in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        log_student = special.log_softmax(student_row)
        difference = special.log_softmax(teacher_row) - log_student

        def excess(beta: float, x: np.ndarray = log_student, d: np.ndarray = difference) -> float:
            weights = np.exp(x + beta * d)
            total = weights.sum()
            return float(beta * (weights @ d) / total - np.log(total) - epsilon)

        beta = 1.0 if excess(1.0) <= 0 else optimize.brentq(excess, 0.0, 1.0, xtol=1e-9, rtol=1e-9)
        found.append((beta, excess(beta) + epsilon))
    betas, kls = torch.tensor(found).unbind(-1)
    return betas, kls


def two_log_softmax(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Calls log_softmax twice, in the inputs' dtype, into fresh tensors: the start of every PyTorch implementation."""
    return torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)


def read(student: Tensor, teacher: Tensor) -> Callable[[], object]:
    """Returns a call that reads both inputs once and does next to nothing else: the fastest of three on this machine.

    The product of the bits as doubles reads both at a time, as the operator does, and is the fastest with MKL. A BLAS
    that runs it on one core loses to a maximum or a sum of the bits as integers.
    """

    def words(logits: Tensor, dtype: torch.dtype) -> Tensor:
        """Views the bits of `logits` as `dtype`, without a last odd logit."""
        flat = logits.reshape(-1)
        return flat[: flat.numel() * flat.element_size() // 8 * 8 // flat.element_size()].view(dtype)

    double, integer = (
        [words(logits, dtype) for logits in (student, teacher)] for dtype in (torch.float64, torch.int32)
    )
    candidates: tuple[Callable[[], object], ...] = (
        lambda: torch.dot(*double),
        lambda: [bits.amax() for bits in integer],
        lambda: [bits.sum(dtype=torch.int32) for bits in integer],
    )

    def seconds(call: Callable[[], object]) -> float:
        lasted = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            lasted.append(time.perf_counter() - start)
        return min(lasted)

    return min(candidates, key=seconds)
