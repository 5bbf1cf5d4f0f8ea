"""Makes vLLM schedule asynchronously on the CPU, where its platform turns that off.

The scheduler and the model runner then work as on a GPU: a step is scheduled before the tokens of the last one are
known. CUDA's streams and events, which order the copies, become empty ones, so their use is not tested.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch


class EmptyEvent:
    """An event that has always happened."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def wait(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


class EmptyStream:
    """A stream whose work is done at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = torch.device("cpu")

    def wait_stream(self, *_: Any) -> None:
        pass

    def wait_event(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


@contextlib.contextmanager
def forced_async() -> Iterator[None]:
    """Applies to the engines that are made and used within."""
    # Its import replaces functions of torch.cuda for good. Within the patches below they would be lost afterwards,
    # and a later engine would look for a GPU.
    import vllm.v1.worker.cpu.shm  # noqa: F401
    from vllm.platforms.cpu import CpuPlatform

    configure = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(platform: type, config: Any) -> None:
        configure(platform, config)
        config.scheduler_config.async_scheduling = True

    with (
        patch.object(torch, "Event", EmptyEvent),
        patch.multiple(
            torch.cuda,
            Event=EmptyEvent,
            Stream=EmptyStream,
            current_stream=lambda *_: EmptyStream(),
            stream=lambda _: contextlib.nullcontext(),
        ),
        patch.object(CpuPlatform, "check_and_update_config", classmethod(check_and_update_config)),
    ):
        yield
