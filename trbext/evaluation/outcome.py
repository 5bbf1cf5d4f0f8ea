"""Holds the judged completions of one model on one benchmark, and what is counted of each prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .pass_at_k import pass_at_k
from .record import Judged, Record

Floats = NDArray[np.float64]
RIGHT = "\0"  # what all right completions answer, however they write it


@dataclass(frozen=True)
class Outcome:
    """The n completions of each of P prompts."""

    correct: NDArray[np.bool_]  # [P, n]
    answers: list[list[str | None]]  # of each prompt n; None does not vote
    tokens: NDArray[np.int64]  # [P, n]
    finished: NDArray[np.bool_]  # [P, n]
    verifier_errors: int
    first_error: str | None
    drawn: dict[str, tuple[float, int]]  # by session, as `Record.drawn`

    @classmethod
    def of(cls, record: Record, prompts: int, samples: int, *, votes: bool) -> Outcome:
        """Returns the outcome of a record in which every completion is judged.

        Args:
            record: Of a model on a benchmark.
            prompts: P.
            samples: n.
            votes: Whether the verifier tells what completions answer.
        """
        rows = [[record.found[row, sample] for sample in range(samples)] for row in range(prompts)]
        errors = [one.error for row in rows for one in row if one.error is not None]
        return cls(
            np.array([[bool(one.correct) for one in row] for row in rows]),
            [[_vote(one) if votes else None for one in row] for row in rows],
            np.array([[one.tokens for one in row] for row in rows]),
            np.array([[one.finished for one in row] for row in rows]),
            len(errors),
            errors[0] if errors else None,
            record.drawn,
        )

    @property
    def prompts(self) -> int:
        """P."""
        return int(self.correct.shape[0])

    @property
    def samples(self) -> int:
        """n."""
        return int(self.correct.shape[1])

    def half(self, which: int) -> Floats:
        """[P]: the share of right completions among those whose sample number is even (0) or odd (1)."""
        return np.asarray(self.correct[:, which::2].mean(1), dtype=np.float64)

    def values(self) -> dict[str, Floats]:
        """What each statistic is the mean of: [P] numbers by the statistic's name.

        pass@k for k = 1, 4, 16, ... and n; maj@n if completions have answers; "length" in tokens; "cut", the share that
        the length limit has cut off. The 90th percentile of the lengths is no mean: `length_p90`.
        """
        n, right = self.samples, self.correct.sum(1)
        powers = [4**power for power in range(16) if 4**power < n]
        found = {
            f"pass@{k}": np.array([pass_at_k(n, int(c), k) for c in right]) for k in dict.fromkeys([1, *powers, n])
        }
        if any(answer is not None for row in self.answers for answer in row):
            found[f"maj@{n}"] = np.array(
                [majority(answers, row) for answers, row in zip(self.answers, self.correct, strict=True)]
            )
        found["length"] = self.tokens.mean(1)
        found["cut"] = (~self.finished).mean(1)
        return found

    def length_p90(self) -> float:
        """The 90th percentile of the lengths of all completions, in tokens."""
        return float(np.percentile(self.tokens, 90))


def majority(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    """Returns the chance that a majority vote is right.

    Args:
        answers: Of each completion; None does not vote.
        correct: The judgment of each.

    Returns:
        The share of right completions among those of the most frequent answer. A tie is drawn by lot. 0 if none votes.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    leaders = [answer for answer, count in votes.items() if count == most]
    right = [
        sum(bool(c) for a, c in zip(answers, correct, strict=True) if a == leader) / votes[leader] for leader in leaders
    ]
    return sum(right) / len(right)


def _vote(judged: Judged) -> str | None:
    return RIGHT if judged.correct else judged.answer
