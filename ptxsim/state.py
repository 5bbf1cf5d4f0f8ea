"""Holds the state of each thread of a wave: registers, parameters, stack frames. Arrays have one entry per lane."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .lanes import Geometry
from .scalar_types import storage_dtype
from .text.syntax import Function, Kernel, Variable

SHARED_WINDOW = 1 << 44  # generic addresses from here on are shared memory,
LOCAL_WINDOW = 1 << 45  # from here on a thread's own stack frames,
PARAM_WINDOW = 1 << 46  # from here on the kernel's parameters


class LaneState:
    """Arrays are made when an instruction first names them, and are reused by later waves and launches."""

    def __init__(self, kernel: Kernel, geometry: Geometry) -> None:
        self.geometry = geometry
        self.kernel = kernel
        self._registers: dict[tuple[str, str], np.ndarray] = {}
        self._specials: dict[str, np.ndarray] = {}
        self._params: dict[tuple[str, str], np.ndarray] = {}
        self.parameter_offsets = kernel.parameter_layout
        self.parameters = np.zeros(1 << 15, np.uint8)
        self._frame_offsets, frame = {}, 0
        for function in kernel.callees:
            for variable in function.body.variables.values():
                if variable.space == "local":
                    frame = -(-frame // max(variable.align, 1)) * max(variable.align, 1)
                    self._frame_offsets[function.name, variable.name] = frame
                    frame += variable.size
        self.frame_size = -(-frame // 16) * 16
        self._stack: np.ndarray | None = None
        self.first_cta = 0
        self.grid = (1, 1, 1)
        self.dynamic_shared = 0

    @property
    def stack(self) -> np.ndarray:
        """[lane, byte] of local memory."""
        if self._stack is None:
            self._stack = np.zeros((self.geometry.lanes, max(self.frame_size, 16)), np.uint8)
        return self._stack

    def start(self, first_cta: int, grid: tuple[int, int, int], dynamic_shared: int) -> None:
        """Begins a wave at this block. Registers keep what an earlier wave left, as on a GPU."""
        place = first_cta, grid, dynamic_shared
        if place == (self.first_cta, self.grid, self.dynamic_shared):
            return
        self.first_cta, self.grid, self.dynamic_shared = place
        for name, values in self._specials.items():
            values[...] = self._special_values(name)

    def register(self, function: Function, name: str) -> np.ndarray | None:
        """Returns a register's bits, one entry per lane; None if there is no such register."""
        key = function.name, name
        if key not in self._registers:
            if name not in function.body.registers:
                return None
            self._registers[key] = np.zeros(self.geometry.lanes, storage_dtype(function.body.registers[name]))
        return self._registers[key]

    def local_offset(self, function: Function, name: str) -> int | None:
        """Returns the offset of a `.local` variable in each thread's stack."""
        return self._frame_offsets.get((function.name, name))

    def param_variable(self, function: Function, name: str) -> np.ndarray | None:
        """Returns [lane, byte] of a `.param` variable of a function or call site; None if there is no such variable."""
        key = function.name, name
        if key not in self._params:
            declared: dict[str, Variable] = {
                v.name: v for v in function.params + function.returns if function is not self.kernel
            }
            declared |= {v.name: v for v in function.body.variables.values() if v.space == "param"}
            if name not in declared:
                return None
            size = -(-declared[name].size // 16) * 16
            self._params[key] = np.zeros((self.geometry.lanes, size), np.uint8)
        return self._params[key]

    def special(self, name: str) -> np.ndarray | None:
        """Returns a special register such as `%tid.x`; None if there is no such register."""
        if name not in self._specials:
            values = self._special_values(name) if name.startswith("%") else None  # no name of a variable
            if values is None:
                return None
            self._specials[name] = np.array(np.broadcast_to(values, self.geometry.lanes).astype(np.uint32))
        return self._specials[name]

    def _special_values(self, name: str) -> np.ndarray | int | None:
        g = self.geometry
        cta = g.cta_of + self.first_cta
        bx, by, bz = g.block
        gx, gy, gz = self.grid
        thread = g.thread_of
        cluster = np.array([g.cluster, 1, 1])
        axes: dict[str, tuple[object, object, object]] = {
            "%tid": (thread % bx, thread // bx % by, thread // (bx * by)),
            "%ntid": (bx, by, bz),
            "%ctaid": (cta % gx, cta // gx % gy, cta // (gx * gy)),
            "%nctaid": (gx, gy, gz),
            "%cluster_ctaid": (cta % g.cluster, 0, 0),
            "%cluster_nctaid": tuple(cluster),
            "%clusterid": (cta % gx // g.cluster, cta // gx % gy, cta // (gx * gy)),
            "%nclusterid": (gx // g.cluster, gy, gz),
        }
        plain: dict[str, Callable[[], object]] = {
            "%laneid": lambda: g.lane_id,
            "%warpid": lambda: thread // 32,
            "%nwarpid": lambda: g.warps_per_cta,
            "%cluster_ctarank": lambda: cta % g.cluster,
            "%cluster_nctarank": lambda: g.cluster,
            "%is_explicit_cluster": lambda: int(g.cluster > 1 or self.kernel.required_cluster is not None),
            "%lanemask_eq": lambda: 1 << g.lane_id,
            "%lanemask_lt": lambda: (1 << g.lane_id) - 1,
            "%lanemask_le": lambda: (2 << g.lane_id) - 1,
            "%lanemask_gt": lambda: 0xFFFFFFFF & ~((2 << g.lane_id) - 1),
            "%lanemask_ge": lambda: 0xFFFFFFFF & ~((1 << g.lane_id) - 1),
            "%dynamic_smem_size": lambda: self.dynamic_shared,
            "%total_smem_size": lambda: self.dynamic_shared + self.kernel.shared_bytes,
        }
        match = re.fullmatch(r"(%\w+)\.([xyz])", name)
        if match is not None and match[1] in axes:
            return axes[match[1]]["xyz".index(match[2])]  # type: ignore[return-value]
        return plain[name]() if name in plain else None  # type: ignore[return-value]
