"""Runs a kernel over a grid."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from . import opcodes
from .findings import Finding, Findings
from .lanes import Geometry
from .limits import check_launch
from .machine import Machine
from .memory.device import Device
from .memory.global_memory import GlobalMemory
from .memory.traffic import Traffic
from .scalar_types import DTYPES
from .text.syntax import Instruction, Kernel

assert opcodes.__all__  # importing them registers the opcodes

WAVE_LANES = 8192  # blocks run in waves of about this many threads, each wave to its end
KEPT_LANES = 4 * WAVE_LANES  # of all machines that are kept: a wave of 8192 may hold some 100 MB of registers
MAX_STEPS = 5_000_000  # basic blocks per wave


@dataclass
class Result:
    """The findings, instruction counts and traffic of a launch, and its trace if one was asked for."""

    findings: list[Finding]
    instructions: Counter[str]  # executed by warps, by opcode
    traffic: dict[str, Traffic]
    lines: Counter[int] = field(default_factory=Counter)  # how often warps executed each line of the PTX text
    trace: list[Instruction] = field(default_factory=list)

    @property
    def kinds(self) -> set[str]:
        return {finding.kind for finding in self.findings}


def launch(
    device: Device,
    kernel: Kernel,
    grid: int | tuple[int, ...],
    block: int | tuple[int, ...],
    args: Sequence[object],
    shared: int = 0,
    cluster: int = 1,
    arch: int = 90,
    seed: int | None = None,
    approx_error: float = 0.0,
    max_steps: int = MAX_STEPS,
    traced: bool = False,
    non_portable: bool = False,
) -> Result:
    """Executes a kernel to its end.

    Args:
        device: The memory that the kernel reads and writes.
        kernel: The kernel.
        grid: Blocks, as one number or per axis.
        block: Threads per block, as one number or per axis.
        args: One per parameter, in order: an int or numpy scalar, or bytes for a struct passed by value.
        shared: Dynamic shared memory, bytes.
        cluster: Blocks per cluster along x; 1 leaves it to the kernel's `__cluster_dims__`.
        arch: The device whose limits hold: 90 is sm_90.
        seed: None runs the lowest pc first; a number draws a schedule, reproducibly.
        approx_error: Largest relative error of `.approx` instructions; the error is a function of the argument.
        max_steps: Basic blocks per wave, after which the launch ends with the finding "timeout".
        traced: Whether the result lists the statements that the grid's first warp executes, in order. A statement that
            lanes of the warp execute at different times is listed once for each.
        non_portable: Whether clusters of 9 to 16 blocks are allowed, as by the attribute of a kernel.

    Returns:
        The result. Faults of the kernel are its findings and are never raised.

    Raises:
        NotImplementedError: The kernel reaches a statement that the interpreter does not implement.
        ValueError: The limits of `arch` are unknown, or `args` do not fit the parameters.
    """
    grid3, block3 = _three(grid), _three(block)
    findings, counts, lines = Findings(), Counter[str](), Counter[int]()
    trace: list[Instruction] | None = [] if traced else None
    if cluster == 1 and kernel.required_cluster is not None:
        cluster = prod(kernel.required_cluster)
    if kernel.required_cluster is not None and max(kernel.required_cluster[1:]) > 1:
        raise NotImplementedError(f"cluster {kernel.required_cluster} is not along x only")
    if not check_launch(kernel, grid3, block3, shared, cluster, arch, findings, non_portable):
        return Result(findings.list, counts, {})
    blocks = prod(grid3)
    threads = -(-prod(block3) // 32) * 32
    wave = max(WAVE_LANES // (threads * cluster), 1) * cluster
    parameters = _parameter_block(kernel, args)
    memory: GlobalMemory | None = None
    with np.errstate(all="ignore"):
        for first in range(0, blocks, wave):
            machine = _machine(kernel, block3, min(wave, blocks - first), cluster, shared)
            machine.device, machine.findings, machine.approx_error = device, findings, approx_error
            machine.place_symbols(device)
            if memory is None:
                memory = GlobalMemory(device, findings)
            memory.refresh()
            memory.name_lane = machine.name_lane
            machine.global_memory = memory
            machine.state.parameters[: len(parameters)] = parameters
            machine.state.start(first, grid3, shared)
            machine.run(None if seed is None else seed + first, max_steps, counts, lines, trace if first == 0 else None)
    assert memory is not None
    return Result(findings.list, counts, memory.meter.result(), lines, trace or [])


def _three(size: int | tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*((size,) if isinstance(size, int) else size), 1, 1)[:3]
    return int(x), int(y), int(z)


_machines: OrderedDict[tuple[object, ...], Machine] = OrderedDict()


def _machine(kernel: Kernel, block: tuple[int, int, int], ctas: int, cluster: int, dynamic_shared: int) -> Machine:
    """Returns a machine, kept for later launches of the same shape; the least recently used ones are dropped.

    Decoding a kernel takes longer than most launches. Machines are made for a power of two of shared memory, so that
    rows of unlike lengths run on the same one.
    """
    size = kernel.shared_bytes + dynamic_shared
    capacity = max(1 << (size - 1).bit_length(), 4096)
    key = kernel, block, ctas, cluster, capacity
    machine = _machines.pop(key, None) or Machine(kernel, Geometry(block, ctas, cluster), capacity)
    machine.shared.size = size
    _machines[key] = machine
    while len(_machines) > 1 and sum(kept.geometry.lanes for kept in _machines.values()) > KEPT_LANES:
        _, dropped = _machines.popitem(last=False)
        vars(dropped).clear()  # its code refers to it, and a program may have hidden it from the garbage collector
    return machine


def _parameter_block(kernel: Kernel, args: Sequence[object]) -> np.ndarray:
    if len(args) != len(kernel.params):
        raise ValueError(f"{kernel.name} takes {len(kernel.params)} parameters, got {len(args)}")
    layout = kernel.parameter_layout
    block = np.zeros(max((layout[p.name] + p.size for p in kernel.params), default=0), np.uint8)
    for parameter, value in zip(kernel.params, args, strict=True):
        if isinstance(value, bytes | bytearray | memoryview):
            data = np.frombuffer(value, np.uint8)
        else:
            data = np.atleast_1d(_scalar(value, parameter.type_name)).view(np.uint8)
        if len(data) != parameter.size:
            raise ValueError(f"{kernel.name}: {parameter.name} has {parameter.size} bytes, got {len(data)}")
        block[layout[parameter.name] : layout[parameter.name] + len(data)] = data
    return block


def _scalar(value: object, type_name: str) -> np.ndarray:
    """Returns a number as the parameter's type. Integers wrap; a float for a 32- or 64-bit parameter keeps its bits."""
    dtype = DTYPES[type_name]
    if isinstance(value, np.generic):
        return np.array(value) if value.dtype.itemsize == dtype.itemsize else np.array(value).astype(dtype)
    if isinstance(value, float):
        return np.array(value, {4: np.float32, 8: np.float64}[dtype.itemsize])
    if dtype.kind == "f":
        return np.array(value, dtype)
    return np.array(int(value) & ((1 << 8 * dtype.itemsize) - 1), f"u{dtype.itemsize}")  # type: ignore[call-overload]
