"""Tests engines of two processes, under DDP and FSDP2: one in each process, or one server for both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from python_tests.models.tiny_models import saved, tiny_llama, tiny_tokenizer
from python_tests.processes.two_processes import run_two_processes

SCRIPT = Path(__file__).with_name("engine_processes.py")
ROWS = 2
Found = dict[str, dict[str, list[dict[str, Any]]]]  # by backend and mode: what each process saw


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Returns what both processes saw."""
    folder = tmp_path_factory.mktemp("processes")
    saved(folder / "student", tiny_llama(0, layers=2), tiny_tokenizer())
    saved(folder / "teacher", tiny_llama(1, hidden=32, layers=2), tiny_tokenizer())
    reports: Found = {}
    for backend in ("ddp", "fsdp"):
        run_two_processes(SCRIPT, backend, str(folder), timeout=400)
        ranks = [json.loads((folder / f"{backend}{rank}.json").read_text()) for rank in range(2)]
        reports[backend] = {mode: [rank[mode] for rank in ranks] for mode in ("colocate", "server")}
    return reports


@pytest.mark.parametrize("backend", ["ddp", "fsdp"])
def test_each_colocated_engine_has_the_whole_student_and_draws_for_its_process(found: Found, backend: str) -> None:
    for rank in found[backend]["colocate"]:
        assert rank["built"] == ["trb", "student"]
        assert rank["same"] == [True] * len(rank["rows"])
        assert set(rank["rows"]) == set(rank["asked"]) == {ROWS}
    one, other = (rank["acceptances"] for rank in found[backend]["colocate"])
    assert one != other  # each process has random numbers of its own


@pytest.mark.parametrize("backend", ["ddp", "fsdp"])
def test_a_server_is_asked_by_one_process_for_the_rollouts_of_both(found: Found, backend: str) -> None:
    main, other = found[backend]["server"]
    assert (main["built"], other["built"]) == (["trb"], [])
    assert main["same"] == [True] * len(main["rows"])
    assert set(main["asked"]) == {2 * ROWS}
    for rank in (main, other):
        assert set(rank["rows"]) == {ROWS}
        assert all(rank["lengths"])
    logged = [log["trb/acceptance"] for log in main["steps"]]
    assert logged[:2] == pytest.approx(main["acceptances"][:2])  # counted once, not once per process


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_sharded_runs_are_those_of_whole_models(found: Found, mode: str) -> None:
    for one, two in zip(found["ddp"][mode][0]["steps"], found["fsdp"][mode][0]["steps"], strict=True):
        assert one.keys() == two.keys()
        for name in {"loss", "grad_norm", "trb/kl", "trb/acceptance", "completions/mean_length"} & one.keys():
            assert one[name] == pytest.approx(two[name], rel=1e-4, abs=1e-6), name
