"""Sharded models (FSDP2, DeepSpeed ZeRO) train as whole ones do, by every loss."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sharded_run
from sharded_run import CASES, STEPS


def launched(backend: str, folder: Path) -> dict[str, list[dict[str, float]]]:
    script = Path(sharded_run.__file__)
    search = os.pathsep.join([str(script.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": search}
    environment["DS_ACCELERATOR"] = "cpu"
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *rendezvous]
    process = subprocess.Popen(
        [*command, str(script), backend, str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        process.terminate()  # takes its two processes with it, where they wait for each other for ever
        process.wait(30)
    assert process.returncode == 0, output[-6000:]
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
