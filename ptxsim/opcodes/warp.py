"""Implements warp-wide instructions: shuffles, votes, reductions, matches."""

from __future__ import annotations

import numpy as np

from ..lanes import WARP, Lanes
from ..operands import Operands, Run
from .registry import collective, opcode


@collective("shfl", mask_operand=-1)
def _shfl(op: Operands) -> Run:
    # 1. Check the form, and find the operands.
    if not op.has("sync") or op.type not in ("b32", "u32", "s32", "f32"):
        raise op.unknown()
    kind = op.one_of("up", "down", "bfly", "idx")
    d, valid = op.dest_pair(0, "b32")
    a, b, c, mask = (op.source(i, "b32") for i in (1, 2, 3, 4))
    geometry, machine, instruction = op.machine.geometry, op.machine, op.instruction
    lane_id = geometry.lane_id
    base = np.arange(geometry.lanes) - lane_id

    # 2. Each lane reads another one of its segment, or itself if that one is out of range.
    def route(lanes: Lanes) -> tuple[np.ndarray, np.ndarray]:
        """Returns the lane that each lane reads, and whether it is in range."""
        s = lanes.sel
        own, offset, control = lane_id[s], b[s].astype(np.int64) & 31, c[s].astype(np.int64)
        segment, clamp = control >> 8 & 31, control & 31
        low = own & segment
        bound = low | (clamp & ~segment)
        if kind == "up":
            source = own - offset
            in_range = source >= bound
        elif kind == "down":
            source = own + offset
            in_range = source <= bound
        elif kind == "bfly":
            source = own ^ offset
            in_range = source <= bound
        else:
            source = low | (offset & ~segment & 31)
            in_range = source <= bound
        return base[s] + np.where(in_range, source, own), in_range

    fixed = all(op[i][0] not in "%" for i in (2, 3))
    everybody = Lanes(geometry, np.arange(geometry.lanes))
    fixed_source, fixed_valid = route(everybody) if fixed else (None, None)
    all_of_all = bool(geometry.exists.all()) and op[4][0] not in "%" and not (~mask).any()

    # 3. The lane that is read must take part.
    def check(lanes: Lanes, source: np.ndarray) -> None:
        reads_active = (lanes.active_bits.astype(np.int64) & mask[lanes.sel]) >> (source % WARP) & 1
        if not reads_active.all():
            i = int(np.argmin(reads_active))
            message = f"{machine.name_lane(lanes.index[i])} reads lane {source[i] % WARP}, inactive or not in the mask"
            machine.findings.add("inactive_lane", instruction, message, int((reads_active == 0).sum()))

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        if fixed_source is not None and fixed_valid is not None:
            source, in_range = fixed_source[s], fixed_valid[s]
        else:
            source, in_range = route(lanes)
        if not (all_of_all and lanes.whole_warps):
            check(lanes, source)
        value = a.take(source)
        d[s] = value
        if valid is not None:
            valid[s] = in_range

    return run


def _groups(lanes: Lanes, mask: np.ndarray) -> np.ndarray | None:
    """Numbers the group of each lane: lanes of its warp that name the same mask. None if warps are the groups."""
    if lanes.count == 1 or (mask == mask[0]).all():
        return None
    uniform = lanes.reduce_warps(np.minimum, mask) == lanes.reduce_warps(np.maximum, mask)
    if uniform.all():
        return None
    return np.unique((lanes.warp_of << 32) | mask.astype(np.int64), return_inverse=True)[1]


def _reduce(lanes: Lanes, mask: np.ndarray, ufunc: np.ufunc, values: np.ndarray) -> np.ndarray:
    """Reduces by `ufunc` over the lanes that name the same mask, and gives each of them the result."""
    group = _groups(lanes, mask)
    if group is None:
        return lanes.reduce_warps(ufunc, values)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.concatenate(([True], np.diff(group[order]) != 0)))
    return ufunc.reduceat(values[order], starts)[group]


@collective("vote", mask_operand=-1)
def _vote(op: Operands) -> Run:
    if not op.has("sync"):
        raise op.unknown()
    kind = op.one_of("all", "any", "uni", "ballot")
    d = op.dest(0, "b32" if kind == "ballot" else "pred")
    vote, mask = op.predicate(1), op.source(2, "u32")
    lane_bit = np.left_shift(1, op.machine.geometry.lane_id)

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        value, named = vote(lanes), mask[s]
        if kind == "ballot":
            d[s] = _reduce(lanes, named, np.bitwise_or, np.where(value, lane_bit[s], 0)).astype(np.uint32)
        elif kind == "any":
            d[s] = _reduce(lanes, named, np.logical_or, value)
        elif kind == "all":
            d[s] = _reduce(lanes, named, np.logical_and, value)
        else:
            d[s] = _reduce(lanes, named, np.logical_and, value) | ~_reduce(lanes, named, np.logical_or, value)

    return run


@collective("redux", mask_operand=-1)
def _redux(op: Operands) -> Run:
    if op.type == "f32":
        if op.has("abs"):
            raise op.unknown()
        names = {"min": np.minimum, "max": np.maximum} if op.has("NaN") else {"min": np.fmin, "max": np.fmax}
    else:
        names = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }
    ufunc = names[op.one_of(*names)]
    op.accept("sync")
    d, a, mask = op.dest(0), op.source(1), op.source(2, "u32")

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        d[s] = _reduce(lanes, mask[s], ufunc, a[s])

    return run


@collective("match", mask_operand=-1)
def _match(op: Operands) -> Run:
    kind = op.one_of("any", "all")
    op.accept("sync")
    d, same = op.dest_pair(0, "b32")
    a, mask = op.source(1), op.source(2, "u32")
    lane_bit = np.left_shift(1, op.machine.geometry.lane_id)

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        value, named = a[s], mask[s]
        if kind == "all":
            equal = _reduce(lanes, named, np.minimum, value) == _reduce(lanes, named, np.maximum, value)
            d[s] = np.where(equal, named, 0)
            if same is not None:
                same[s] = equal
            return
        key = np.stack([lanes.warp_of, named.astype(np.int64), value.astype(np.int64)], 1)
        group = np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)
        bits = np.zeros(int(group.max()) + 1, np.int64)
        np.bitwise_or.at(bits, group, lane_bit[s])
        d[s] = bits[group].astype(np.uint32)

    return run


@collective("elect", mask_operand=-1)
def _elect(op: Operands) -> Run:
    op.accept("sync")
    d, leader = op.dest_pair(0, "b32")
    mask = op.source(1, "u32")
    lane_id = op.machine.geometry.lane_id

    def run(lanes: Lanes) -> None:
        s = lanes.sel
        first = _reduce(lanes, mask[s], np.minimum, lane_id[s])
        d[s] = first.astype(np.uint32)
        if leader is not None:
            leader[s] = lane_id[s] == first

    return run


@collective("bar.warp", mask_operand=-1)
def _bar_warp(op: Operands) -> Run:
    op.accept("warp", "sync")
    machine = op.machine

    def run(lanes: Lanes) -> None:
        machine.shared.ordering.warp_barrier(lanes.warps)

    return run


@opcode("activemask")
def _activemask(op: Operands) -> Run:
    d = op.dest(0, "b32")

    def run(lanes: Lanes) -> None:
        d[lanes.sel] = lanes.active_bits

    return run
