"""vLLM's own trainer engine drives a transfer of the student, up to NCCL itself, which needs GPUs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from python_tests.vllm.server.fake_server import HANDSHAKE, fake_server
from trbext.vllm.http import HTTPEngine
from trbext.vllm.server.student_transfer import StudentTransfer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
]

WEIGHTS = {"embed": torch.zeros(3, 2, dtype=torch.bfloat16), "head": torch.ones(2)}


def weights() -> Iterator[tuple[str, torch.Tensor]]:
    yield from WEIGHTS.items()


def test_every_worker_joins_and_the_draft_model_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.weight_transfer import nccl_engine
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient

    sent: list[tuple[str, torch.Tensor]] = []
    joined: list[Any] = []
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", joined.append)
    monkeypatch.setattr(
        nccl_engine.NCCLTrainerWeightTransferEngine, "_broadcast", lambda self, source, meta: sent.extend(source)
    )
    with fake_server() as server:
        server.answers["/trb/handshake"] = (200, {**HANDSHAKE, "replicas": 2, "tensor_parallel_size": 4})
        server.answers["/trb/transfer"] = (200, {"answers": []})
        transfer = StudentTransfer(HTTPEngine(server.url), weights, master_address="10.0.0.1", master_port=5)
        assert isinstance(transfer, VLLMWeightSyncClient)
        for _ in range(2):
            transfer.send()
        steps = server.of("/trb/transfer")

    assert [step["step"] for step in steps] == ["init", *["start", "update", "finish"] * 2]
    assert (joined[0].world_size, joined[0].rank) == (9, 0)
    for name, value in {"master_address": "10.0.0.1", "master_port": 5, "rank_offset": 1, "world_size": 9}.items():
        assert steps[0]["info"][name] == value
    assert steps[2]["info"] == {
        "names": ["embed", "head"],
        "dtype_names": ["bfloat16", "float32"],
        "shapes": [[3, 2], [2]],
    }
    assert [name for name, _ in sent] == ["embed", "head"] * 2


def test_only_rank_0_reaches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.weight_transfer import nccl_engine

    passes: list[str] = []
    monkeypatch.setattr(
        nccl_engine.NCCLTrainerWeightTransferEngine,
        "_broadcast",
        lambda self, source, meta: passes.extend(name for name, _ in source),
    )
    with fake_server() as server:
        engine = HTTPEngine(server.url)
        StudentTransfer(engine, weights, master_address="10.0.0.1", master_port=5, rank=1).send()
        assert server.of("/trb/transfer") == []
    assert passes == ["embed", "head"]
