"""Times the work of a device without waiting for the device."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Sets marks in the work of a device; the time between two marks can be read later, so nothing waits for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Any:
        """Sets and returns a mark after all work that has been launched so far."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """Returns the seconds between two marks that the device has passed."""
        return float(end - begin if self._device.type != "cuda" else begin.elapsed_time(end) / 1e3)
