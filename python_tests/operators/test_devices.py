"""devices.on moves a tensor to a device with its layout in memory; else the layout tests would test nothing there."""

from __future__ import annotations

import torch

import trbext
from python_tests.operators.devices import Operators, on


def test_a_moved_tensor_keeps_strides_and_offset() -> None:
    wide = torch.randn(4, 12)
    for view in (wide, wide[:, 3:8], wide[:, 1::2], wide.t(), wide[2], wide[:1].expand(4, -1), torch.empty(0, 7)):
        moved = on("meta", view)  # the one other device that every machine has
        assert moved.is_meta
        assert (moved.shape, moved.stride(), moved.storage_offset()) == (
            view.shape,
            view.stride(),
            view.storage_offset(),
        )
        assert on("cpu", view) is view


def test_the_operators_of_a_device_move_every_tensor_there() -> None:
    student, teacher = torch.randn(3, 50), torch.randn(3, 50)
    uniform = torch.rand(3, dtype=torch.float64)
    places: list[str] = []

    def record(*arguments: torch.Tensor, **options: torch.Tensor) -> tuple[torch.Tensor, ...]:
        places.extend(value.device.type for value in (*arguments, *options.values()))
        return ()

    Operators("meta")._call(record, student, teacher, torch.full((3,), 0.1), uniform=uniform)
    assert places == ["meta"] * 4
    drawn = Operators("cpu").sample(student, teacher, 0.1, uniform=uniform)
    assert torch.equal(drawn.token, trbext.sample(student, teacher, 0.1, uniform=uniform).token)
