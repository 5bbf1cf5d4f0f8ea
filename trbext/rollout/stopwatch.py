"""Times the work of a device without waiting for it."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Marks in the work of a device, whose distance can be read later: nothing waits for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """Between two marks that the device has passed."""
        return float(end - begin if self._device.type != "cuda" else begin.elapsed_time(end) / 1e3)
