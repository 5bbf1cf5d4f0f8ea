"""Checks every method before it is timed: a fast wrong answer stops the benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import trbext
from trbext import TopK, reference, reference_top_k
from trbext.results import Sample, Solution

REFERENCE_ROWS = 2  # float64 bisection of one row takes as long as the whole batch in the operator
TOLERANCE = 1e-3  # relative
NOTHING = torch.tensor(0.0)
LOG_PROB_ERROR = torch.tensor(1e-4)  # nats


class WrongAnswer(RuntimeError):
    """A method disagrees with `trbext.reference`; the message says which method and number, and by how much."""


@dataclass(frozen=True)
class Truth:
    """beta and KL of all rows by `trbext.solve`, which agrees with `trbext.reference` on the first ones."""

    student: Tensor
    teacher: Tensor
    beta: Tensor  # [N]
    kl: Tensor  # [N]

    @classmethod
    def find(cls, student: Tensor, teacher: Tensor, epsilon: float) -> Truth:
        """Finds the right answers.

        Args:
            student: [N, V] logits.
            teacher: [N, V] logits.
            epsilon: KL budget, nats.

        Raises:
            WrongAnswer: `trbext.solve` disagrees with `trbext.reference` on the first rows.
        """
        first = student[:REFERENCE_ROWS], teacher[:REFERENCE_ROWS]
        exact = reference.solve(*first, epsilon)
        solved = trbext.solve(student, teacher, epsilon)
        _require_close("trbext.solve: beta", solved.beta[:REFERENCE_ROWS], exact.beta, NOTHING)
        _require_close("trbext.solve: KL", solved.kl[:REFERENCE_ROWS], exact.kl, NOTHING)
        return cls(student, teacher, solved.beta, solved.kl)

    def check(self, name: str, beta: Tensor, kl: Tensor, resolution: float = 0.0) -> None:
        """Raises WrongAnswer unless beta [n] and kl [n] of the first n rows are right, beta within `resolution`.

        Args:
            name: What the error calls the method.
            beta: [n].
            kl: [n], nats.
            resolution: The error of beta that the method may have.
        """
        expected_beta, expected_kl = self.beta[: len(beta)], self.kl[: len(kl)]
        _require_close(f"{name}: beta", beta, expected_beta, torch.tensor(resolution))
        # KL ~ beta^2, so an error e of beta moves it by 2 KL e / beta. The factor 3 covers rows whose KL grows faster.
        _require_close(f"{name}: KL", kl, expected_kl, 3 * resolution * expected_kl / expected_beta.clamp(min=1e-6))

    def check_log_probs(self, name: str, log_probs: Tensor) -> None:
        """Raises WrongAnswer unless log_probs [n, V] is log mu on the first rows."""
        first = log_probs[:REFERENCE_ROWS]
        _require_close(f"{name}: log mu", first, self._log_probs(len(first)), LOG_PROB_ERROR)

    def check_tokens(self, name: str, token: Tensor, log_prob: Tensor) -> None:
        """Raises WrongAnswer unless log_prob [n] is log mu of token [n] on the first rows."""
        first = log_prob[:REFERENCE_ROWS]
        expected = self._log_probs(len(first)).gather(-1, token[:REFERENCE_ROWS, None])[:, 0]
        _require_close(f"{name}: log mu of the token", first, expected, LOG_PROB_ERROR)

    def _log_probs(self, rows: int) -> Tensor:
        return reference.behavior_log_probs(self.student[:rows], self.teacher[:rows], self.beta[:rows])


def check_top_k(student: Tensor, teacher: TopK, epsilon: float, found: Solution | Sample) -> None:
    """Raises WrongAnswer unless beta and KL of the first n rows are those of `trbext.reference_top_k`.

    Args:
        student: [n, V] logits.
        teacher: [n, k] tokens and their log-probabilities.
        epsilon: KL budget, nats.
        found: What an operator returned for these rows and perhaps more.
    """
    exact = reference_top_k.solve(student, teacher, epsilon)
    for name, got, expected in (("beta", found.beta, exact.beta), ("KL", found.kl, exact.kl)):
        _require_close(f"top-k: {name}", got[: len(expected)].cpu(), expected, NOTHING)


def _require_close(what: str, got: Tensor, expected: Tensor, absolute: Tensor) -> None:
    absolute = absolute.expand(expected.shape)
    error = (got.double() - expected.double()).abs() - TOLERANCE * expected.double().abs() - absolute
    if not bool((error <= 0).all()):  # NaN fails too
        worst = int(error.nan_to_num(float("inf")).argmax())
        raise WrongAnswer(
            f"{what} must be {expected.reshape(-1)[worst]:.9g} within {TOLERANCE} of itself and "
            f"{absolute.reshape(-1)[worst]:.1g}, got {got.reshape(-1)[worst]:.9g}"
        )
