"""Compiles the kernels of blocks and clusters for the files of tests that run them."""

from pathlib import Path

import pytest

from ptxsim import Module, compile_ptx

COOPERATION = Path(__file__).parents[1] / "kernels" / "cooperation.cu"


@pytest.fixture(scope="session")
def sm_90() -> Module:
    return Module.parse(compile_ptx(COOPERATION, 90))


@pytest.fixture(scope="session")
def sm_80() -> Module:
    return Module.parse(compile_ptx(COOPERATION, 80))
