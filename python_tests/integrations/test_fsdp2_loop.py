"""The FSDP2 example of docs/hosts/integrate.md trains two processes' shards as a whole model would be trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from python_tests.processes.two_processes import run_two_processes


@pytest.mark.sharded
def test_the_example_takes_the_steps_of_a_whole_model() -> None:
    run_two_processes(Path(__file__).parent / "fsdp2_loop.py", timeout=300)
