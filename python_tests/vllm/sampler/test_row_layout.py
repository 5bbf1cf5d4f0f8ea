"""The rows of an engine's step: which row of the student and of the teacher each draft has, against plain loops."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from trbext.vllm.sampler.row_layout import RowLayout, on_device

LENGTH = 3  # drafts of a request at most


def by_hand(counts: list[int], requests: list[str], owners: list[str] | None) -> tuple[list[bool], list[int]]:
    """Returns which requests can be verified, and the student's row of each draft, request by request."""
    usable, rows = [], []
    for request, count in zip(requests, counts, strict=True):
        owned = owners is not None and request in owners
        usable.append(owned and count > 0)
        first = owners.index(request) * LENGTH if owners is not None and owned else -1
        rows += [first + draft if owned else -1 for draft in range(count)]
    return usable, rows


def check(counts: list[int], requests: list[str], owners: list[str] | None) -> RowLayout:
    layout = RowLayout.of(counts, requests, owners, LENGTH)
    usable, rows = by_hand(counts, requests, owners)
    assert layout.counts.tolist() == counts
    assert layout.usable.tolist() == usable
    found = range(sum(counts)) if layout.student_rows is None else layout.student_rows.tolist()
    assert list(found) == rows
    assert layout.request_of_row.tolist() == [row for row, count in enumerate(counts) for _ in range(count)]
    return layout


def test_a_whole_batch_is_read_in_place() -> None:
    layout = check([3, 3, 3], ["a", "b", "c"], ["a", "b", "c"])
    assert layout.student_rows is None


@pytest.mark.parametrize(
    ("counts", "requests", "owners"),
    [
        ([3, 3], ["b", "a"], ["a", "b"]),  # vLLM has moved a request
        ([3, 1, 2], ["a", "b", "c"], ["a", "b", "c"]),  # ragged
        ([3, 0, 3], ["a", "b", "c"], ["a", "c"]),  # a prompt has just been read
        ([3, 3], ["a", "b"], ["b"]),  # the probabilities of one are lost
        ([3, 3], ["a", "b"], None),  # those of all
        ([0, 0], ["a", "b"], None),
        ([3], ["a"], ["gone", "a", "gone too"]),
        ([], [], []),
    ],
)
def test_a_batch_that_has_changed_is_found_by_request(
    counts: list[int], requests: list[str], owners: list[str] | None
) -> None:
    check(counts, requests, owners)


def test_random_batches() -> None:
    generator = random.Random(0)
    shortcuts = 0
    for _ in range(500):
        names = [f"r{number}" for number in range(generator.randrange(1, 8))]
        owners = [name for name in names if generator.random() < 0.9]
        requests = [name for name in names if generator.random() < 0.9]
        if generator.random() < 0.3:
            generator.shuffle(requests)
        counts = [generator.choice([3, 3, 3, 3, 2, 0]) for _ in requests]
        shortcuts += check(counts, requests, owners).student_rows is None
    assert 20 < shortcuts < 400


def test_indices_reach_the_device_unchanged() -> None:
    array = np.arange(5)
    assert torch.equal(on_device(array, torch.device("cpu")), torch.arange(5))
