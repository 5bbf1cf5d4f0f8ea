"""Sharded models (FSDP2, DeepSpeed ZeRO) train as whole ones do, by every loss."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from python_tests.training import sharded_run
from python_tests.training.sharded_run import CASES, STEPS
from python_tests.training.two_processes import run_two_processes


def launched(backend: str, folder: Path) -> dict[str, list[dict[str, float]]]:
    script = Path(sharded_run.__file__)
    run_two_processes(script, backend, str(folder), timeout=400, DS_ACCELERATOR="cpu")
    found: dict[str, list[dict[str, float]]] = json.loads((folder / f"{backend}.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    return launched("ddp", folder)


has_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (DS_BUILD_OPS=0 builds it)"
)


@pytest.mark.parametrize(
    "backend", ["fsdp", pytest.param("zero2", marks=has_deepspeed), pytest.param("zero3", marks=has_deepspeed)]
)
def test_sharded_models_train_as_whole_ones_by_every_loss(backend: str, folder: Path, whole: dict[str, Any]) -> None:
    found = launched(backend, folder)
    assert found.keys() == CASES.keys()
    for case, steps in found.items():
        assert len(steps) == STEPS
        for step, expected in zip(steps, whole[case], strict=True):
            assert step == pytest.approx(expected, rel=1e-3, abs=1e-5), case
