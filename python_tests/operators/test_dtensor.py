"""Two processes that each hold half of the rows of a DTensor solve their own rows and assemble the whole."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import trbext

ROWS, VOCAB = 6, 40


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(ROWS, VOCAB, generator=generator) for _ in "ab")
    return (
        student,
        teacher,
        torch.rand(ROWS, generator=generator),
        torch.rand(ROWS, dtype=torch.float64, generator=generator),
    )


def on_one_rank(rank: int, port: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for placement in (Shard(0), Shard(1), Replicate()):
        student, teacher = (distribute_tensor(logits, mesh, [placement]) for logits in inputs()[:2])
        of_rows = placement if placement == Shard(0) else Replicate()
        epsilon, uniform = (distribute_tensor(values, mesh, [of_rows]) for values in inputs()[2:])
        outputs = (
            *trbext.solve(student, teacher, 0.1),
            *trbext.solve(student, teacher, epsilon, temperature=0.7),
            *trbext.blend(student, teacher, epsilon),
            *trbext.sample(student, teacher, epsilon, uniform=uniform),
        )
        assert all(output.placements == (of_rows,) for output in outputs), placement
        if placement == Shard(0):
            assert all(len(output.to_local()) == ROWS // 2 for output in outputs)
        found[str(placement)] = [output.full_tensor() for output in outputs]
    student, teacher = (distribute_tensor(logits, mesh, [Shard(0)]) for logits in inputs()[:2])
    whole = [
        distribute_tensor(values, mesh, [Replicate()])
        for values in (torch.tensor([1, 2, 3, 4, 5, -1]), torch.tensor([0, 2, 6]), torch.full((2,), 0.1), torch.ones(2))
    ]
    drafts, offsets, budget, heat = whole
    uniform = distribute_tensor(inputs()[3], mesh, [Replicate()])
    verified = trbext.verify(
        student,
        teacher,
        drafts,
        offsets,
        budget,
        temperature=heat,
        accept_uniform=uniform,
        draw_uniform=uniform,
        width=4,
    )
    found["verify"] = [output.full_tensor() for output in verified]
    verified = trbext.verify(
        student, teacher, drafts, offsets, 0.1, accept_uniform=uniform, draw_uniform=uniform, width=4
    )
    found["verify, numbers"] = [output.full_tensor() for output in verified]
    with pytest.raises(ValueError, match="uniform must be given if the logits are DTensors, got None"):
        trbext.sample(student, teacher, 0.1)
    if rank == 0:
        torch.save(found, Path(folder) / "found")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_rows_sharded_over_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(on_one_rank, args=(port, str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "found")
    student, teacher, epsilon, uniform = inputs()
    expected = (
        *trbext.solve(student, teacher, 0.1),
        *trbext.solve(student, teacher, epsilon, temperature=0.7),
        *trbext.blend(student, teacher, epsilon),
        *trbext.sample(student, teacher, epsilon, uniform=uniform),
    )
    verified = trbext.verify(
        student, teacher, torch.tensor([1, 2, 3, 4, 5, -1]), torch.tensor([0, 2, 6]), 0.1, accept_uniform=uniform,
        draw_uniform=uniform, width=4,
    )  # fmt: skip
    for name in ("verify", "verify, numbers"):
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(found.pop(name), verified, strict=True))
    assert len(found) == 3
    for placement, outputs in found.items():
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True)), placement
