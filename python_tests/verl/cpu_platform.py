"""Lets verl train on CPUs, by its own registries: a platform whose devices are Ray's GPUs in name only.

verl imports it in each of its processes (VERL_USE_EXTERNAL_MODULES, with VERL_PLATFORM=trb_cpu). The training engine is
that for GPUs (VERL_ENGINE_DEVICE=cuda). verl itself knows no CPU.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry
from verl.utils import import_utils

NAME = "trb_cpu"


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _device_module() -> ModuleType:
    """What `torch.cuda` is for a GPU."""
    module = ModuleType("trb_cpu_device")
    for name in (
        *("empty_cache", "synchronize", "set_device", "manual_seed", "manual_seed_all"),
        *("reset_peak_memory_stats", "ipc_collect"),
    ):
        setattr(module, name, _nothing)
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(module, name, lambda *_: 0)
    vars(module).update(
        is_available=lambda: True,
        current_device=lambda: "cpu",
        device_count=lambda: 1,
        mem_get_info=lambda *_: (0, 0),
        get_rng_state=torch.get_rng_state,
        set_rng_state=torch.set_rng_state,
        get_device_name=lambda *_: "cpu",
    )
    return module


@PlatformRegistry.register(platform=NAME)
class CPUPlatform(PlatformBase):
    """One CPU as the device of a process."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _device_module()

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    set_device = synchronize = set_allocator_settings = empty_cache = _nothing
    profiler_start = profiler_stop = cudart = _nothing

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"  # Ray sets it for the GPUs that it was told of

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False  # weights go through shared memory


_stock_init = torch.distributed.init_process_group


@functools.wraps(_stock_init)
def _init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
    # verl names one backend for the CPU and one for the device, and torch refuses two of one device.
    _stock_init("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)


torch.distributed.init_process_group = _init_process_group

# verl 0.9.1 looks for a class of TRL's that TRL 1.16 no longer has.
import_utils.is_trl_available = lambda: False
