"""Sorts the records of an engine by request, for callers whose requests run at the same time."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import numpy as np

from ..vllm.transport import Records

# The arrays of `StepRecords.take` that are not of tokens from mu, and the one that says whose they are.
KEY_OF = {"teacher_key": "teacher_key", "teacher_index": "teacher_key", "fault_key": "fault_key"}
KEYS = ("key", "teacher_key", "fault_key")


class Mailbox:
    """The records of open requests.

    A request gets a number of its own that is never used again: an engine may compute tokens past the end of a request,
    and their records may come after it was closed.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self._open: dict[int, list[Records]] = {}

    def open(self) -> int:
        """Returns the number of a new request."""
        number = next(self._numbers)
        self._open[number] = []
        return number

    def put(self, taken: Iterable[Records]) -> None:
        """Sorts records (`StepRecords.take`). Those of requests that are not open are dropped."""
        for records in taken:
            present = np.unique(np.concatenate([records[key] for key in KEYS]))
            for number in present.tolist():
                if number in self._open:
                    self._open[number].append(_of(records, number))

    def close(self, number: int) -> list[Records]:
        """Returns the records of a request, with the key 0, and forgets it."""
        return self._open.pop(number, [])


def _of(records: Records, number: int) -> Records:
    """The records of one request, with the key 0."""
    chosen = {key: np.flatnonzero(records[key] == number) for key in KEYS}
    found = {name: values[chosen[KEY_OF.get(name, "key")]] for name, values in records.items()}
    return {**found, **{key: np.zeros_like(found[key]) for key in KEYS}}
