"""Gives the tests of the operators back the number of threads that they change."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts torch's number of threads back after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
