"""Two processes (torchrun, gloo, CPU) train one student by methods of the field, as one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.processes.two_processes import run_two_processes
from python_tests.training.supervision import field_run


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Returns what each of two processes saw."""
    folder = tmp_path_factory.mktemp("field")
    run_two_processes(Path(field_run.__file__), str(folder), timeout=1800)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def logs(rank: dict[str, Any], method: str) -> list[dict[str, float]]:
    return [log for log in rank[method]["logs"] if "loss" in log]


@pytest.mark.parametrize("method", field_run.METHODS)
def test_both_processes_come_to_the_same_weights(ranks: list[dict[str, Any]], method: str) -> None:
    first, second = (rank[method]["weights"] for rank in ranks)
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_both_processes_adapt_to_the_rollouts_of_both(ranks: list[dict[str, Any]]) -> None:
    lengths = [
        [log["trb/rollout_length"] for log in logs(rank, "adaptive")] for rank in ranks if logs(rank, "adaptive")
    ]
    assert lengths[0][0] == 3
    assert lengths[0][-1] > 3
    for rank in ranks:
        widths = [rollout.tokens.shape[1] for rollout in rank["adaptive"]["rollouts"]]
        assert all(width <= length for width, length in zip(widths, lengths[0], strict=True))


def test_labels_of_both_processes_are_of_their_own_rollouts(ranks: list[dict[str, Any]]) -> None:
    one, two = (rank["routed"]["rollouts"][0] for rank in ranks)
    assert one.replaced.any()
    assert two.replaced.any()
    assert not torch.equal(one.tokens[:, :3], two.tokens[:, :3])
