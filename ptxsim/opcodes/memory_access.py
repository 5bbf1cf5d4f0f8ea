"""Implements ld and st in every state space, of one element or a vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..lanes import Lanes
from ..operands import Operands, Run
from ..scalar_types import DTYPES, UNSIGNED
from ..state import LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW
from .registry import opcode

SPACES = (
    "global",
    "shared",
    "shared::cta",
    "shared::cluster",
    "local",
    "param",
    "param::entry",
    "param::func",
    "const",
)
_VECTORS = {"v2": 2, "v4": 4, "v8": 8}
_HINTS = {
    "ca",
    "cg",
    "cs",
    "cv",
    "lu",
    "wb",
    "wt",
    "nc",
    "volatile",
    "weak",
    "relaxed",
    "acquire",
    "release",
    "cta",
    "cluster",
    "gpu",
    "sys",
    "mmio",
}
_HINT_PREFIXES = ("L1::", "L2::")

Place = tuple[Lanes, np.ndarray | None, dict[int, np.ndarray], np.ndarray]
"""Lanes, their positions among the active lanes (None: all), typed views of the memory, byte offsets in it."""


def check_modifiers(op: Operands, known: set[str]) -> None:
    """Raises if a modifier is not supported."""
    for modifier in op.modifiers:
        if (
            modifier not in known
            and modifier not in _HINTS
            and modifier not in DTYPES
            and not modifier.startswith(_HINT_PREFIXES)
        ):
            raise op.unknown()
    op.accept(*op.modifiers)


def places(op: Operands, space: str, width: int, kind: str) -> Callable[[Lanes, np.ndarray], Iterator[Place]]:
    """Returns code that finds the memory of the active lanes' addresses; generic ones may be of several spaces."""
    # 1. One function per state space checks addresses and finds their memory.
    machine, instruction = op.machine, op.instruction

    def in_global(lanes: Lanes, address: np.ndarray) -> tuple[dict[int, np.ndarray], np.ndarray]:
        offset = machine.global_memory.access(lanes, address, width, instruction, kind)
        return machine.device.views, offset

    def in_shared(lanes: Lanes, address: np.ndarray) -> tuple[dict[int, np.ndarray], np.ndarray]:
        return machine.shared.views, machine.shared.access(lanes, address, width, instruction, kind)

    def in_local(lanes: Lanes, address: np.ndarray) -> tuple[dict[int, np.ndarray], np.ndarray]:
        stack = machine.state.stack
        bad = (address < 0) | (address + width > machine.state.frame_size) | (address % width != 0)
        if bad.any():
            i = int(np.argmax(bad))
            where = f"{kind} of {width} bytes at local+{int(address[i])} of {machine.state.frame_size}"
            message = f"{machine.name_lane(lanes.index[i])}: {where}"
            machine.findings.add("out_of_bounds", instruction, message, int(bad.sum()))
            address = np.where(bad, 0, address)
        flat = stack.reshape(-1)
        return {w: flat.view(dtype) for w, dtype in UNSIGNED.items()}, lanes.index * stack.shape[1] + address

    def in_param(lanes: Lanes, address: np.ndarray) -> tuple[dict[int, np.ndarray], np.ndarray]:
        if kind != "load" or int(address.min()) < 0 or int(address.max()) + width > len(machine.state.parameters):
            raise NotImplementedError(f"{instruction}: address outside the parameters")
        return {w: machine.state.parameters.view(dtype) for w, dtype in UNSIGNED.items()}, address

    # 2. A generic address belongs to the space in whose window it lies.
    finders = {
        "shared": in_shared,
        "shared::cta": in_shared,
        "shared::cluster": in_shared,
        "local": in_local,
        "param": in_param,
        "param::entry": in_param,
        "const": in_global,
        "global": in_global,
    }
    windows = ((PARAM_WINDOW, in_param), (LOCAL_WINDOW, in_local), (SHARED_WINDOW, in_shared), (-(1 << 62), in_global))

    def generic(lanes: Lanes, address: np.ndarray) -> Iterator[Place]:
        low, high = int(address.min()), int(address.max())
        top = 1 << 62
        for start, find in windows:
            if low >= start and high < top:
                yield lanes, None, *find(lanes, address - max(start, 0))
                return
            if high >= start and low < top:
                chosen = (address >= start) & (address < top)
                if chosen.any():
                    some = lanes.where(chosen)
                    yield some, chosen, *find(some, address[chosen] - max(start, 0))
            top = start

    # 3. Any other address belongs to the space that the instruction names.
    if space == "generic":
        return generic

    def specific(lanes: Lanes, address: np.ndarray) -> Iterator[Place]:
        yield lanes, None, *finders[space](lanes, address)

    return specific


def _shape(op: Operands) -> tuple[str, str, int, int]:
    """Returns the space, element type for registers, bytes of an element, elements."""
    space = op.one_of(*SPACES, default="generic")
    check_modifiers(op, {*SPACES, *_VECTORS})
    if not op.type:
        raise op.unknown()
    count = next((n for name, n in _VECTORS.items() if op.has(name)), 1)
    return space, op.type, DTYPES[op.type].itemsize, count


@opcode("ld")
def _load(op: Operands) -> Run:
    space, type_name, width, count = _shape(op)
    names = op.elements(0)
    if len(names) != count:
        raise op.unknown()
    dests = [op.dest(name, type_name) for name in names]
    dtype = DTYPES[type_name]
    if space.startswith("param"):
        base, displacement = op.address(1)
        variable = op.machine.state.param_variable(op.function, base)
        if variable is not None:
            return _load_variable(variable, displacement, dests, dtype)
        if op.function is op.machine.kernel and base in op.machine.state.parameter_offsets:
            return _load_parameter(op, op.machine.state.parameter_offsets[base] + displacement, dests, dtype)
    address, find = op.address_source(1), places(op, space, width * count, "load")

    def run(lanes: Lanes) -> None:
        for some, _, views, offset in find(lanes, address(lanes)):
            s = some.sel
            view = views[width]
            first = offset // width
            dests[0][s] = view.take(first).view(dtype)
            for part in range(1, count):
                dests[part][s] = view.take(first + part).view(dtype)

    return run


def _load_variable(variable: np.ndarray, displacement: int, dests: list[np.ndarray], dtype: np.dtype) -> Run:
    """Loads from a `.param` variable of a call: one copy per lane."""
    first = displacement // dtype.itemsize
    sources = [variable.view(dtype)[:, first + part] for part in range(len(dests))]

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        for d, a in zip(dests, sources, strict=True):
            d[s] = a[s]

    return run


def _load_parameter(op: Operands, offset: int, dests: list[np.ndarray], dtype: np.dtype) -> Run:
    """Loads from the kernel's parameters: the same for all lanes."""
    width = dtype.itemsize
    block = op.machine.state.parameters
    sources = [block[offset + part * width : offset + (part + 1) * width].view(dtype) for part in range(len(dests))]

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        for d, a in zip(dests, sources, strict=True):
            d[s] = a

    return run


@opcode("st")
def _store(op: Operands) -> Run:
    # 1. Check the form, and find the operands.
    space, type_name, width, count = _shape(op)
    names = op.elements(1)
    if len(names) != count:
        raise op.unknown()
    sources = [op.source(name, type_name) for name in names]
    unsigned = UNSIGNED[width]
    # 2. A variable of a call is written in place.
    if space.startswith("param"):
        base, displacement = op.address(0)
        variable = op.machine.state.param_variable(op.function, base)
        if variable is None:
            raise op.unknown()
        first = displacement // width
        columns = [variable.view(unsigned)[:, first + part] for part in range(count)]

        def run_param(lanes: Lanes) -> None:
            s = lanes.sel
            for d, a in zip(columns, sources, strict=True):
                d[s] = a[s].view(unsigned)

        return run_param
    # 3. All other memory is found by its address.
    address, find = op.address_source(0), places(op, space, width * count, "store")

    def run(lanes: Lanes) -> None:
        for some, _, views, offset in find(lanes, address(lanes)):
            s = some.sel
            view = views[width]
            first = offset // width
            for part in range(count):
                view[first + part] = sources[part][s].view(unsigned)

    return run
