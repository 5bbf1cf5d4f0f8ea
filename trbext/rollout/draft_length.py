"""Chooses the draft length: the number k of drafts in a round that gives most tokens per second, by measured costs.

Let a be the probability that a draft is accepted, s the seconds of a student step, and t(k) the seconds of a teacher
pass over k + 1 tokens. A round then emits E(k) = (1 - a^(k+1)) / (1 - a) tokens per row in (k + 1) s + t(k) seconds.
k = 0 has the cost of lockstep. If a pass is bound by arithmetic, t(k) grows like k + 1 and no k beats 0. If a pass is
bound by reading weights, t(k) hardly grows.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict, deque
from typing import Any

import torch
from torch import Tensor

from .policy import whole_number

LONGEST = 15  # drafts of a round: with 0.95 of them accepted, 16 rows already emit two thirds of what 64 would
_SAMPLES = 8  # latest measurements kept of each cost
_PRIOR = 16.0  # drafts that the acceptance expected from epsilon counts for, so that a lucky few do not decide
_PROBE = 3  # drafts of the first round that has any
_GAIN = 1.08  # least gain over lockstep; below it the noise of timings and of acceptance would decide


class DraftLength:
    """Chooses k round by round from measured costs; one object may serve many rollouts of the same models.

    `freeze()` ends the measuring. From then on each choice follows from the costs so far and the acceptance within the
    rollout. A run that is resumed with `state()` has the same numbers.

    Args:
        longest: The most drafts that a round may have, at least 1.

    Raises:
        ValueError: `longest` is below 1.
    """

    def __init__(self, longest: int = LONGEST) -> None:
        self.longest = whole_number("longest", longest, 1, " draft")
        self.frozen = False
        self._student: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_SAMPLES))  # by _bucket(rows)
        self._teacher: dict[int, dict[int, deque[float]]] = defaultdict(
            lambda: defaultdict(lambda: deque(maxlen=_SAMPLES))
        )  # by _bucket(rows), then k
        self.begin(0.0)

    def begin(self, epsilon: float | Tensor) -> None:
        """Starts a rollout with an expected acceptance.

        If the budget binds and the log-ratio of the models is roughly normal, the acceptance is 1 - TV(mu, pi_S) =
        1 - sqrt(epsilon / pi) for small epsilon.

        Args:
            epsilon: The KL budget of the rollout, nats; one for all rows or [B].
        """
        budget = torch.as_tensor(epsilon, dtype=torch.float64)
        expected = float((1 - (budget / math.pi).sqrt()).clamp(min=0.3).mean())
        self._accepted, self._tested = expected * _PRIOR, _PRIOR

    @property
    def acceptance(self) -> float:
        """The share of drafts that are accepted, as estimated in this rollout."""
        return self._accepted / self._tested

    def saw_drafts(self, accepted: int, tested: int) -> None:
        """Records that `accepted` of `tested` drafts were accepted."""
        self._accepted += accepted
        self._tested += tested

    def saw_costs(self, rows: int, k: int, student_seconds: float, teacher_seconds: float) -> None:
        """Records the cost of one round.

        Args:
            rows: Rows of the batch.
            k: Drafts of the round.
            student_seconds: Of its k + 1 student steps together.
            teacher_seconds: Of its teacher pass over k + 1 tokens per row.
        """
        if not self.frozen:
            bucket = _bucket(rows)
            self._student[bucket].append(student_seconds / (k + 1))
            self._teacher[bucket][k].append(teacher_seconds)

    def choose(self, rows: int, left: int) -> int:
        """Returns the number of drafts of the next round, 0 .. longest.

        Args:
            rows: Rows of the batch.
            left: The most tokens that the round may feed to a row: those that any may still write, or, beside a model
                that must not be asked past the limit, those that every row may.
        """
        most, bucket = min(self.longest, left - 1), _bucket(rows)
        probe = self._probe(bucket)
        return self._best(bucket, most) if probe is None else min(probe, most)

    def measuring(self, rows: int) -> bool:
        """Returns whether the next round of so many rows measures: the costs of all earlier rounds must then be
        known."""
        return self._probe(_bucket(rows)) is not None

    def _probe(self, bucket: int) -> int | None:
        """Returns the draft length to measure next; None if no measurement is missing.

        The cost of a draft is known only after a pass over several tokens has been timed. The usual probe has three
        drafts, because two or three tokens may cost more than four on a CPU. If there are many rows and hardly any
        draft would be accepted, the probe has one draft, which loses less time. If drafting could not pay at all,
        nothing is tried. A length longer than all before is tried twice, because the first pass of a new shape also
        pays for kernels and buffers.
        """
        if self.frozen or any(max(self._known(bucket + near), default=0) > 0 for near in (-2, -1, 1, 2)):
            return None  # batches of a quarter to four times the size have been measured
        passes = self._teacher.get(bucket, {})
        longest = max(passes, default=0)
        for k in (0, longest or (_PROBE if self.acceptance > 0.6 or bucket < 3 else 1)):
            if k > 0 and not self._could_pay(bucket):
                return None
            if len(passes.get(k, ())) < 2:
                return k
        return None

    def _could_pay(self, bucket: int) -> bool:
        """Returns whether any length would pay if a pass over several tokens cost no more than a pass over one."""
        student, single = _typical(self._student[bucket]), _typical(self._teacher[bucket][0])
        rates = [self._rate(k, student, single) for k in range(self.longest + 1)]
        return max(rates) >= _GAIN * rates[0]

    def _rate(self, k: int, student: float, teacher: float) -> float:
        """Returns the tokens per second and row in rounds of k drafts: E(k) / ((k + 1) s + t(k))."""
        a = min(self.acceptance, 1 - 1e-9)
        return (1 - a ** (k + 1)) / (1 - a) / ((k + 1) * student + teacher)

    def _known(self, bucket: int) -> dict[int, float]:
        """Returns the seconds of the teacher's pass in a round of k drafts, by k, as measured."""
        return {k: _typical(samples) for k, samples in sorted(self._teacher.get(bucket, {}).items())}

    def _costs(self, bucket: int) -> tuple[float, dict[int, float]]:
        """Returns the seconds of a student step, and of teacher passes by k.

        They are those measured at this batch size. If only one length has been measured at this size, the passes of the
        nearest size are scaled to agree with it at that length, and fill in the others.
        """
        own = self._known(bucket)
        others = sorted(other for other in self._teacher if other != bucket)  # a saved state has another order
        if len(own) > 1 or not others:
            return _typical(self._student[bucket]), own
        nearest = min(others, key=lambda other: abs(other - bucket))
        theirs = self._known(nearest)
        if not own:
            return _typical(self._student[nearest]), theirs
        ((k, seconds),) = own.items()
        ratio = seconds / _interpolated(theirs, k)
        return _typical(self._student[bucket]), {**{k: ratio * t for k, t in theirs.items()}, **own}

    def _best(self, bucket: int, most: int) -> int:
        if not self._teacher:
            return 0
        student, teacher = self._costs(bucket)
        most = min(most, 2 * max(teacher) + 1)  # costs beyond are not known from what was measured

        def rate(k: int) -> float:
            return self._rate(k, student, _interpolated(teacher, k))

        best = max(range(most + 1), key=rate)
        return best if rate(best) >= _GAIN * rate(0) else 0

    def freeze(self) -> None:
        """Ends the measuring."""
        self.frozen = True

    def state(self) -> dict[str, Any]:
        """Returns the measured costs, for `load_state`, as values that JSON holds."""
        return {
            "frozen": self.frozen,
            "student": {str(bucket): list(samples) for bucket, samples in self._student.items()},
            "teacher": {
                str(bucket): {str(k): list(samples) for k, samples in by_k.items()}
                for bucket, by_k in self._teacher.items()
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Replaces the measured costs by those of `state()`."""
        self.frozen = state["frozen"]
        self._student.clear()
        self._teacher.clear()
        for bucket, samples in state["student"].items():
            self._student[int(bucket)].extend(samples)
        for bucket, by_k in state["teacher"].items():
            for k, samples in by_k.items():
                self._teacher[int(bucket)][int(k)].extend(samples)


def _bucket(rows: int) -> int:
    """Returns the n for which 2^(n-1) < rows <= 2^n: batches of one bucket share their costs."""
    return (max(rows, 1) - 1).bit_length()


def _typical(samples: deque[float]) -> float:
    """Returns the lower median, because first calls and other processes only ever add to a cost."""
    return sorted(samples)[(len(samples) - 1) // 2]


def _interpolated(teacher: dict[int, float], k: int) -> float:
    """Returns t(k) on straight lines between the measured ones, the last of which is extended."""
    known = list(teacher)
    if k in teacher or len(known) == 1:
        return teacher.get(k, teacher[known[0]])
    upper = min(max(bisect_left(known, k), 1), len(known) - 1)
    low, high = known[upper - 1], known[upper]
    slope = max(0.0, (teacher[high] - teacher[low]) / (high - low))
    return teacher[low] + slope * (k - low)
