"""Before anything is imported: no test may reach a network (TRL reports the use of its trainers)."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `trb`, the operators of one device, runs on the CPU, and on a GPU where there is one."""
    if "trb" in metafunc.fixturenames:
        from devices import Operators, cuda_missing

        there = [pytest.param(Operators("cpu"), id="cpu")]
        if cuda_missing() is None:
            there.append(pytest.param(Operators("cuda"), id="cuda", marks=pytest.mark.cuda))
        metafunc.parametrize("trb", there)
