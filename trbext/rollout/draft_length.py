"""How many tokens to draft ahead in one round: the k that maximises tokens per second, by measured costs.

With a the probability that a draft stands, s the seconds of a student step and t(k) those of a teacher pass over k + 1
tokens, a round emits E(k) = (1 - a^(k+1)) / (1 - a) tokens per row in (k + 1) s + t(k) seconds. k = 0 is lockstep's
cost: where a pass is bound by arithmetic, t(k) grows like k + 1 and nothing beats it; where it is bound by reading
weights, t(k) hardly grows.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict, deque
from typing import Any

import torch
from torch import Tensor

LONGEST = 15  # drafts of a round: with 0.95 of them standing, 16 rows already emit two thirds of what 64 would
_SAMPLES = 8  # of each cost, the latest
_PRIOR = 16.0  # drafts that the acceptance expected from epsilon counts for: a lucky few must not decide
_PROBE = 3  # drafts of the first round that has any
_GAIN = 1.08  # over lockstep's cost, below which the noise of timings and of acceptance decides


class DraftLength:
    """Chooses k round by round, from costs measured on the way; one may serve many rollouts of the same models.

    `freeze()` ends the measuring: from then on choices follow from the costs so far and the acceptance within a
    rollout, which are the same numbers when a run is resumed with `state()`.
    """

    def __init__(self, longest: int = LONGEST) -> None:
        if longest < 1:
            raise ValueError(f"longest must be at least 1 draft, got {longest}")
        self.longest = longest
        self.frozen = False
        self._student: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_SAMPLES))  # by _bucket(rows)
        self._teacher: dict[int, dict[int, deque[float]]] = defaultdict(
            lambda: defaultdict(lambda: deque(maxlen=_SAMPLES))
        )  # by _bucket(rows), then k
        self.begin(0.0)

    def begin(self, epsilon: float | Tensor) -> None:
        """Before a rollout at the budget `epsilon` (nats): what share of drafts to expect to stand.

        Where the budget binds and D is roughly normal it is 1 - TV(mu, pi_S) = 1 - sqrt(epsilon / pi), for small
        epsilon.
        """
        budget = torch.as_tensor(epsilon, dtype=torch.float64)
        expected = float((1 - (budget / math.pi).sqrt()).clamp(min=0.3).mean())
        self._stood, self._tested = expected * _PRIOR, _PRIOR

    @property
    def acceptance(self) -> float:
        """The share of drafts that stand, as estimated in this rollout."""
        return self._stood / self._tested

    def saw_drafts(self, stood: int, tested: int) -> None:
        """`stood` of `tested` drafts were accepted."""
        self._stood += stood
        self._tested += tested

    def saw_costs(self, rows: int, k: int, student_seconds: float, teacher_seconds: float) -> None:
        """A round of k drafts for `rows` rows: k + 1 student steps, and one teacher pass over as many tokens."""
        if not self.frozen:
            bucket = _bucket(rows)
            self._student[bucket].append(student_seconds / (k + 1))
            self._teacher[bucket][k].append(teacher_seconds)

    def choose(self, rows: int, left: int) -> int:
        """Drafts of the next round, 0 .. longest, given how many tokens are left to write at most."""
        most, bucket = min(self.longest, left - 1), _bucket(rows)
        probe = self._probe(bucket)
        return self._best(bucket, most) if probe is None else min(probe, most)

    def measuring(self, rows: int) -> bool:
        """Whether the next choice for so many rows is made to measure: wants the costs of all rounds before it."""
        return self._probe(_bucket(rows)) is not None

    def _probe(self, bucket: int) -> int | None:
        """The length that has to be measured before the best can be told; None once it can.

        What the tokens of a pass cost beyond the first is told by a pass over several. On a CPU two or three may cost
        more than four, so they would not do; but of many rows where hardly any draft would stand, two tokens are less
        of a loss, and where drafting could not pay at all nothing is tried. A length longer than all before is tried
        twice: the first pass of a new shape also pays for kernels and buffers.
        """
        if self.frozen or any(max(self._known(bucket + near), default=0) > 0 for near in (-2, -1, 1, 2)):
            return None  # a batch of up to four times the size, or of a quarter, has told
        passes = self._teacher.get(bucket, {})
        longest = max(passes, default=0)
        for k in (0, longest or (_PROBE if self.acceptance > 0.6 or bucket < 3 else 1)):
            if k > 0 and not self._could_pay(bucket):
                return None
            if len(passes.get(k, ())) < 2:
                return k
        return None

    def _could_pay(self, bucket: int) -> bool:
        """Whether any length would, if a pass over several tokens cost no more than one over a single token."""
        student, alone = _typical(self._student[bucket]), _typical(self._teacher[bucket][0])
        rates = [self._rate(k, student, alone) for k in range(self.longest + 1)]
        return max(rates) >= _GAIN * rates[0]

    def _rate(self, k: int, student: float, teacher: float) -> float:
        """Tokens a second of a row in rounds of k drafts: E(k) / ((k + 1) s + t(k))."""
        a = min(self.acceptance, 1 - 1e-9)
        return (1 - a ** (k + 1)) / (1 - a) / ((k + 1) * student + teacher)

    def _known(self, bucket: int) -> dict[int, float]:
        """Seconds of the teacher's pass in a round of k drafts, by k."""
        return {k: _typical(samples) for k, samples in sorted(self._teacher.get(bucket, {}).items())}

    def _costs(self, bucket: int) -> tuple[float, dict[int, float]]:
        """Seconds of a student step, and of passes: the batch's own, and where those are of one length alone those of
        the nearest size as well, in proportion."""
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
        most = min(most, 2 * max(teacher) + 1)  # no further than what was measured can tell

        def rate(k: int) -> float:
            return self._rate(k, student, _interpolated(teacher, k))

        best = max(range(most + 1), key=rate)
        return best if rate(best) >= _GAIN * rate(0) else 0

    def freeze(self) -> None:
        """Measure no more."""
        self.frozen = True

    def state(self) -> dict[str, Any]:
        """The measured costs, for `load_state`; JSON."""
        return {
            "frozen": self.frozen,
            "student": {str(bucket): list(samples) for bucket, samples in self._student.items()},
            "teacher": {
                str(bucket): {str(k): list(samples) for k, samples in by_k.items()}
                for bucket, by_k in self._teacher.items()
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.frozen = state["frozen"]
        self._student.clear()
        self._teacher.clear()
        for bucket, samples in state["student"].items():
            self._student[int(bucket)].extend(samples)
        for bucket, by_k in state["teacher"].items():
            for k, samples in by_k.items():
                self._teacher[int(bucket)][int(k)].extend(samples)


def _bucket(rows: int) -> int:
    """Batches of 2^(n-1) + 1 .. 2^n rows share their costs: n."""
    return (max(rows, 1) - 1).bit_length()


def _typical(samples: deque[float]) -> float:
    """The lower median: a first call's own costs, and another process's, only ever add."""
    return sorted(samples)[(len(samples) - 1) // 2]


def _interpolated(teacher: dict[int, float], k: int) -> float:
    """t(k) on straight lines through the measured ones, the last of which goes on."""
    known = list(teacher)
    if k in teacher or len(known) == 1:
        return teacher.get(k, teacher[known[0]])
    upper = min(max(bisect_left(known, k), 1), len(known) - 1)
    low, high = known[upper - 1], known[upper]
    slope = max(0.0, (teacher[high] - teacher[low]) / (high - low))
    return teacher[low] + slope * (k - low)
