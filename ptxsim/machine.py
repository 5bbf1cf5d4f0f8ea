"""Runs the threads of a wave to the end: a kernel linked with its callees and bound to the state of the wave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from .barriers import BlockBarriers, ClusterBarriers
from .findings import Findings
from .lanes import WARP, Geometry, Lanes, union
from .mbarriers import Mbarriers
from .memory.device import Device
from .memory.global_memory import GlobalMemory
from .memory.shared_memory import SharedMemory
from .opcodes.registry import Next, build, find_collective, find_control
from .operands import Operands, Run
from .ready import ReadyLanes
from .state import LaneState
from .text.syntax import Function, Instruction, Kernel


@dataclass
class _Segment:
    """Straight code from one pc, and the control statement after it."""

    start: int
    end: int  # first pc that is not counted with this segment
    ops: list[Run]
    leave: Callable[[Lanes], Next]


class Machine:
    """Bound code for one kernel and one geometry. Instructions are decoded when first reached, then kept."""

    def __init__(self, kernel: Kernel, geometry: Geometry, shared_capacity: int) -> None:
        self.kernel, self.geometry = kernel, geometry
        self.shared_layout = kernel.shared_layout
        self.state = LaneState(kernel, geometry)
        self.code: list[tuple[Function, Instruction]] = []
        self.entry: dict[str, int] = {}
        self.labels: dict[tuple[str, str], int] = {}
        for function in kernel.callees:
            self.entry[function.name] = len(self.code)
            for label, position in function.body.labels.items():
                self.labels[function.name, label] = len(self.code) + position
            self.code += [(function, instruction) for instruction in function.body.instructions]
        self._label_pcs = set(self.labels.values())
        self.shared = SharedMemory(geometry, shared_capacity, [instruction for _, instruction in self.code])
        self.block_barriers = BlockBarriers(self)
        self.cluster_barriers = ClusterBarriers(self)
        self.mbarriers = Mbarriers(self)
        self._barriers = (self.block_barriers, self.cluster_barriers, self.mbarriers)
        self._segments: dict[int, _Segment] = {}
        self._symbols: dict[tuple[str, int], np.ndarray] = {}
        self.call_sites: dict[str, list[tuple[int, Callable[[Lanes], None]]]] = {}
        self._collective_run: dict[int, Callable[[Lanes], tuple[int, Lanes]]] = {}
        self._return_sites: dict[str, np.ndarray] = {}
        self.device: Device
        self.findings: Findings
        self.global_memory: GlobalMemory
        self.approx_error = 0.0

    def module_symbol(self, name: str, offset: int) -> np.ndarray | None:
        """Returns the address of a module's variable, in an array that is refilled for each launch's device."""
        variable = self.kernel.module.variables.get(name)
        if variable is None or variable.space not in ("global", "const"):
            return None
        if (name, offset) not in self._symbols:
            self._symbols[name, offset] = np.array(
                [self.device.symbol(self.kernel.module, variable) + offset], np.uint64
            )
            self.global_memory.refresh()
        return self._symbols[name, offset]

    def place_symbols(self, device: Device) -> None:
        """Writes the addresses on this device of the module variables that bound code refers to, before a launch."""
        for (name, offset), cell in self._symbols.items():
            cell[0] = device.symbol(self.kernel.module, self.kernel.module.variables[name]) + offset

    def return_sites(self, function: Function) -> np.ndarray:
        """Returns, per lane, the entry of `call_sites` that called this function: one, as there is no recursion."""
        if function.name not in self._return_sites:
            self._return_sites[function.name] = np.zeros(self.geometry.lanes, np.int64)
        return self._return_sites[function.name]

    def name_lane(self, lane: int) -> str:
        """Returns a lane's name in the grid, such as `block 3 thread 17`."""
        return self.geometry.where(lane, self.state.first_cta)

    def run(
        self,
        seed: int | None,
        max_steps: int,
        counts: Counter[str],
        lines: Counter[int],
        trace: list[Instruction] | None,
    ) -> None:
        """Runs one wave to its end, adding executed warp instructions to `counts` and `lines`, and warp 0's to
        `trace`."""
        # 1. All threads of the wave begin at the first statement.
        self._ready = ReadyLanes(seed)
        self._parked: dict[int, Lanes] = {}
        self.shared.start(self.findings, self.name_lane)
        for kind in self._barriers:
            kind.start()
        executed = np.zeros(len(self.code) + 2, np.int64)
        self.push(0, Lanes(self.geometry, np.flatnonzero(self.geometry.exists)))
        # 2. Lanes run one segment of straight code at a time, as long as no others are ready.
        steps = 0
        while True:
            if not self._ready and not self._force_progress():
                break
            pc, lanes = self._ready.pop()
            while True:
                segment = self._segments.get(pc) or self._decode(pc)
                for op in segment.ops:
                    op(lanes)
                if trace is not None and lanes.index[0] < WARP:
                    trace += [instruction for _, instruction in self.code[segment.start : segment.end]]
                warps = len(lanes.warps)
                executed[segment.start] += warps
                executed[segment.end] -= warps
                steps += 1
                following = segment.leave(lanes)
                if following is None:
                    break
                pc, lanes = following
                if self._ready:
                    self.push(pc, lanes)
                    break
                if steps > max_steps:
                    break
            if steps > max_steps:
                where = self.code[min(pc, len(self.code) - 1)][1]
                self.findings.add("timeout", where, f"{self.name_lane(lanes.index[0])} still runs after {steps} steps")
                break
        # 3. The executed segments are added up per statement, and per line its most frequent statement.
        of_wave: dict[int, int] = {}
        for pc, times in enumerate(np.cumsum(executed)[: len(self.code)]):
            if times:
                statement = self.code[pc][1]
                counts[statement.name] += int(times)
                of_wave[statement.line] = max(of_wave.get(statement.line, 0), int(times))
        lines.update(of_wave)

    def push(self, pc: int, lanes: Lanes) -> None:
        """Queues these lanes to continue at `pc`."""
        self._ready.push(pc, lanes)

    def _force_progress(self) -> bool:
        """Reports that no lane can run. Releases lanes of an mbarrier or a partial warp, or else ends all waits."""
        if self.mbarriers.give_up():
            return True
        if self._parked:
            pc = min(self._parked)
            lanes = self._parked.pop(pc)
            instruction = self.code[pc][1]
            who, active = self.name_lane(lanes.index[0]), int(lanes.active_bits[0])
            message = f"{who}: only lanes {active:#010x} of the warp are here, not all of its mask"
            self.findings.add("partial_warp", instruction, message, lanes.count)
            following = self._collective_run[pc](lanes)
            self.push(*following)
            return True
        waiting = np.concatenate([kind.waiting() for kind in self._barriers])
        if not len(waiting):
            return False
        pcs = np.concatenate([kind.wait_pc for kind in self._barriers])
        statements = [str(self.code[pc][1]) for pc in np.unique(pcs[pcs >= 0])]
        who = f"{self.name_lane(int(waiting[0]))} and {len(waiting) - 1} more threads"
        self.findings.add("deadlock", statements[0], f"{who} wait forever, at {'; '.join(statements)}", len(waiting))
        for kind in self._barriers:
            kind.start()
        return False

    def exit(self, lanes: Lanes) -> None:
        """Ends these threads."""
        for cta in self.shared.exit(lanes):
            self.mbarriers.after_exit(cta)
        self.block_barriers.after_exit(lanes)
        self.cluster_barriers.after_exit(lanes)

    def _decode(self, pc: int) -> _Segment:
        ops: list[Run] = []
        start = pc
        while True:
            function, instruction = self.code[pc] if pc < len(self.code) else (None, None)
            if instruction is None or function is None:
                raise NotImplementedError(f"{self.kernel.name} runs past its last statement")
            operands = Operands(self, function, instruction, pc)
            run, leave = self._meaning(operands)
            if leave is not None:
                if instruction.guard is not None:
                    leave = self._guarded_control(operands, leave)
                segment = _Segment(start, pc + 1, ops, leave)
                break
            assert run is not None
            ops.append(run if instruction.guard is None else _guarded(operands, run))
            pc += 1
            if pc in self._label_pcs:
                segment = _Segment(start, pc, ops, partial(_fall_through, pc))
                break
        self._segments[start] = segment
        return segment

    def _meaning(self, operands: Operands) -> tuple[Run | None, Callable[[Lanes], Next] | None]:
        """Returns the code of a straight instruction, or else the code that sends its lanes to the next pc."""
        try:
            instruction = operands.instruction
            group = find_collective(instruction.opcode, instruction.modifiers)
            control_builder = find_control(instruction.opcode, instruction.modifiers)
            run = leave = None
            if control_builder is not None:
                leave = control_builder(operands)
            elif group is not None:
                leave = self._collective(operands, group.build(operands), group.mask_operand)
            else:
                run = build(operands)
        except KeyError as error:  # a type or form that a table of the builder lacks
            raise operands.unknown() from error
        operands.refuse_unconsidered()
        return run, leave

    def understands(self, pc: int) -> bool:
        """Returns whether the statement at `pc` can be executed."""
        try:
            self._meaning(Operands(self, *self.code[pc], pc))
        except NotImplementedError:
            return False
        return True

    def _guarded_control(self, operands: Operands, leave: Callable[[Lanes], Next]) -> Callable[[Lanes], Next]:
        guard = _guard(operands)
        after = operands.pc + 1

        def run(lanes: Lanes) -> Next:
            taken = guard(lanes)
            count = np.count_nonzero(taken)
            if count == lanes.count:
                return leave(lanes)
            if count == 0:
                return after, lanes
            self.push(after, lanes.where(~taken))
            following = leave(lanes.where(taken))
            if following is not None:
                self.push(*following)
            return None

        return run

    def _collective(self, operands: Operands, run: Run, mask_operand: int | None) -> Callable[[Lanes], Next]:
        # 1. The mask says which lanes of a warp take part; without one, all of them do.
        pc = operands.pc
        mask = (
            None
            if mask_operand is None
            else operands.source(len(operands) - 1 if mask_operand == -1 else mask_operand, "u32")
        )
        exists = np.left_shift(1, self.geometry.warp_population) - 1

        # 2. Lanes wait until all lanes of their mask are at the statement.
        def leave(lanes: Lanes) -> Next:
            parked = self._parked.pop(pc, None)
            if parked is not None:
                lanes = union([lanes, parked])
            if not lanes.whole_warps:
                wanted = exists[lanes.warp_of].astype(np.uint32)
                if mask is not None:
                    wanted &= mask[lanes.sel]
                missing = (wanted & ~lanes.active_bits) != 0
                if missing.any():
                    self._parked[pc] = lanes.where(missing)
                    if missing.all():
                        return None
                    lanes = lanes.where(~missing)
            run(lanes)
            return pc + 1, lanes

        # 3. If no lane can run, those that are here go without the others.
        def forced(lanes: Lanes) -> tuple[int, Lanes]:
            run(lanes)
            return pc + 1, lanes

        self._collective_run[pc] = forced
        return leave


def _fall_through(pc: int, lanes: Lanes) -> Next:
    return pc, lanes


def _guard(operands: Operands) -> Callable[[Lanes], np.ndarray]:
    instruction = operands.instruction
    return operands.predicate(f"{'!' if instruction.guard_negated else ''}{instruction.guard}")


def _guarded(operands: Operands, run: Run) -> Run:
    guard = _guard(operands)

    def guarded(lanes: Lanes) -> None:
        taken = guard(lanes)
        count = np.count_nonzero(taken)
        if count == lanes.count:
            run(lanes)
        elif count:
            run(lanes.where(taken))

    return guarded
