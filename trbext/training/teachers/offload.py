"""Keeps the weights of frozen models in the host's memory, and on their device only while something reads them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class OffloadedWeights:
    """The weights of frozen models, which are on `device` inside `on_device` and on the host otherwise.

    The host keeps its copy, so that to leave the device copies nothing: the device's copy is dropped. On a GPU the
    host's copy is pinned. `seconds` is what the copying took.

    Args:
        models: Are moved to the host. Their weights must not change from here on.
        device: On which they compute. On the CPU everything is copied all the same, which saves nothing.

    Raises:
        ValueError: A weight is of a kind that cannot be moved so: sharded, quantized by another package, or dispatched.
    """

    def __init__(self, models: Sequence[nn.Module], device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.loads = 0
        self._depth = 0
        tensors = {id(tensor): tensor for model in models for tensor in _tensors(model)}
        self._tensors = list(tensors.values())
        self._hosted = [self._on_host(tensor.data) for tensor in self._tensors]
        self._point_to(self._hosted)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Copies the weights to their device inside, and drops that copy on leaving. May be nested."""
        if self._depth == 0:
            with self.timed():
                self._point_to([hosted.to(self.device, copy=True, non_blocking=True) for hosted in self._hosted])
            self.loads += 1
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._point_to(self._hosted)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds what the copying inside takes to `seconds`."""
        start = time.perf_counter()
        yield
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)  # the copies would be waited for anyway, and are timed here
        self.seconds += time.perf_counter() - start

    def pop_seconds(self) -> float:
        """Returns the seconds of copying since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _on_host(self, data: Tensor) -> Tensor:
        hosted = data.to("cpu", copy=True)
        return hosted.pin_memory() if self.device.type == "cuda" else hosted

    def _point_to(self, values: Sequence[Tensor]) -> None:
        for tensor, value in zip(self._tensors, values, strict=True):
            tensor.data = value


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    kind = type(model).__name__
    if hasattr(model, "hf_device_map"):
        raise ValueError(f"teacher_offload moves the weights of {kind} itself: load the teacher without a device_map")
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter or type(parameter.data) is not Tensor or hasattr(parameter, "ds_id"):
            raise ValueError(
                f"teacher_offload moves plain weights, and {name} of {kind} is a {type(parameter.data).__name__}, "
                "sharded or quantized: leave teacher_offload out"
            )
        yield parameter
    yield from model.buffers()
