"""Implements branches, calls, exits, and barriers of blocks and clusters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..lanes import Lanes
from ..operands import Operands
from ..text.literals import literal
from ..text.syntax import Function
from .registry import Next, control

Leave = Callable[[Lanes], Next]


@control("bra")
def _bra(op: Operands) -> Leave:
    op.accept("uni")
    target = op.machine.labels[op.function.name, op[0]]
    return lambda lanes: (target, lanes)


@control("brx")
def _brx(op: Operands) -> Leave:
    """Implements `brx.idx index, table`."""
    op.accept("idx", "uni")
    index = op.source(0, "u32")
    targets = np.array([op.machine.labels[op.function.name, t] for t in op.function.body.branch_targets[op[1]]])
    machine = op.machine

    def leave(lanes: Lanes) -> Next:
        to = targets[index[lanes.sel]]
        for target in np.unique(to):
            machine.push(int(target), lanes.where(to == target))
        return None

    return leave


@control("exit")
def _exit(op: Operands) -> Leave:
    def leave(lanes: Lanes) -> Next:
        op.machine.exit(lanes)
        return None

    return leave


@control("trap")
def _trap(op: Operands) -> Leave:
    def leave(lanes: Lanes) -> Next:
        op.machine.findings.add("trap", op.instruction, f"{op.machine.name_lane(lanes.index[0])} traps", lanes.count)
        op.machine.exit(lanes)
        return None

    return leave


@control("ret")
def _ret(op: Operands) -> Leave:
    op.accept("uni")
    machine, function = op.machine, op.function
    if function is machine.kernel:
        return _exit(op)

    def leave(lanes: Lanes) -> Next:
        site = machine.return_sites(function)[lanes.sel]
        sites = machine.call_sites[function.name]
        distinct = np.unique(site)
        for i in distinct:
            pc, take_result = sites[i]
            some = lanes if len(distinct) == 1 else lanes.where(site == i)
            take_result(some)
            machine.push(pc, some)
        return None

    return leave


@control("call")
def _call(op: Operands) -> Leave:
    """Implements `call.uni (result), name, (argument, ...)`, whose operands are `.param` variables of the call site."""
    # 1. Take the statement apart.
    op.accept("uni")
    groups = [
        [x.strip() for x in o[1:-1].split(",") if x.strip()] for o in op.instruction.operands if o.startswith("(")
    ]
    names = [o for o in op.instruction.operands if not o.startswith("(")]
    if len(names) != 1:
        raise op.unknown()
    machine, module = op.machine, op.function.module
    if names[0] == "__assertfail":
        return _trap(op)
    # 2. Pair the variables of the call site with those of the function.
    callee = module.functions.get(names[0])
    if callee is None or not callee.is_defined:
        raise op.unknown()
    has_result = bool(callee.returns)
    results = groups[0] if has_result else []
    arguments = groups[-1] if len(groups) > has_result else []
    copies_in = [
        (_variable(op, name), _formal(op, callee, p.name)) for name, p in zip(arguments, callee.params, strict=True)
    ]
    copies_out = [
        (_formal(op, callee, p.name), _variable(op, name)) for name, p in zip(results, callee.returns, strict=True)
    ]

    # 3. The caller copies the arguments in, and the return copies the result out.
    def take_result(lanes: Lanes) -> None:
        for source, target in copies_out:
            target[lanes.sel] = source[lanes.sel]

    sites = machine.call_sites.setdefault(callee.name, [])
    sites.append((op.pc + 1, take_result))
    number, entry, return_site = len(sites) - 1, machine.entry[callee.name], machine.return_sites(callee)

    def leave(lanes: Lanes) -> Next:
        s = lanes.sel
        for source, target in copies_in:
            target[s] = source[s]
        return_site[s] = number
        return entry, lanes

    return leave


def _variable(op: Operands, name: str) -> np.ndarray:
    variable = op.machine.state.param_variable(op.function, name)
    if variable is None:
        raise op.unknown()
    return variable


def _formal(op: Operands, callee: Function, name: str) -> np.ndarray:
    variable = op.machine.state.param_variable(callee, name)
    if variable is None:
        raise op.unknown()
    return variable


def _number(op: Operands, operand: int) -> int:
    value = literal(op[operand], "u32")
    if value is None:
        raise op.unknown()
    return int(value)


def _uniform(op: Operands, operand: int) -> Callable[[Lanes], int]:
    """Returns a barrier's number or thread count, which must be equal in all threads that arrive together."""
    if literal(op[operand], "u32") is not None:
        number = _number(op, operand)
        return lambda lanes: number
    values = op.source(operand, "u32")

    def value(lanes: Lanes) -> int:
        distinct = np.unique(values[lanes.sel])
        if len(distinct) > 1:
            raise NotImplementedError(f"{op.instruction}: threads name different barriers at once")
        return int(distinct[0])

    return value


@control("bar", "barrier")
def _bar(op: Operands) -> Leave:
    """Implements bar.sync a{, b}; bar.arrive a, b; and bar.red.{popc.u32|and.pred|or.pred} d, a{, b}, p."""
    kind = op.one_of("sync", "arrive", "red")
    op.accept("aligned", "cta")
    barriers, pc = op.machine.block_barriers, op.pc
    reducing = kind == "red"
    first = 1 if reducing else 0
    barrier = _uniform(op, first)
    counted = len(op) > first + 1 + reducing
    count = _uniform(op, first + 1) if counted else (lambda lanes: 0)
    predicate = op.predicate(len(op) - 1) if reducing else None
    if reducing:
        _register_reduction(op, pc)

    def leave(lanes: Lanes) -> Next:
        contribution = None if predicate is None else predicate(lanes)
        if barriers.arrive(pc, lanes, barrier(lanes), count(lanes), contribution, wait=kind != "arrive"):
            return pc + 1, lanes
        return None

    return leave


def _register_reduction(op: Operands, pc: int) -> None:
    how = op.one_of("popc", "and", "or")
    d = op.dest(0, "u32" if how == "popc" else "pred")

    def reduce(lanes: Lanes, true: np.ndarray, participants: np.ndarray) -> None:
        s = lanes.sel
        d[s] = true if how == "popc" else true == participants if how == "and" else true > 0

    op.machine.block_barriers.on_release(pc, reduce)


@control("barrier.cluster")
def _barrier_cluster(op: Operands) -> Leave:
    barriers, pc = op.machine.cluster_barriers, op.pc
    op.accept("cluster", "aligned", "acquire", "release", "relaxed")
    if op.one_of("arrive", "wait") == "arrive":

        def arrive(lanes: Lanes) -> Next:
            barriers.arrive(lanes)
            return pc + 1, lanes

        return arrive

    def wait(lanes: Lanes) -> Next:
        free = barriers.wait(pc, lanes)
        return None if free is None else (pc + 1, free)

    return wait
