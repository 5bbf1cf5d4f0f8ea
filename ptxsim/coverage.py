"""Lists the statements of a kernel that the interpreter cannot execute, without executing any."""

from __future__ import annotations

from . import opcodes
from .findings import Findings
from .lanes import Geometry
from .machine import Machine
from .memory.device import Device
from .memory.global_memory import GlobalMemory
from .text.syntax import Kernel

assert opcodes.__all__  # importing them registers the opcodes


def unsupported_statements(kernel: Kernel) -> list[str]:
    """Returns the statements of the kernel and of its callees that would raise NotImplementedError when reached."""
    machine = Machine(kernel, Geometry((32, 1, 1), 1, 1), kernel.shared_bytes)
    machine.device, machine.findings = Device(), Findings()
    machine.global_memory = GlobalMemory(machine.device, machine.findings)
    return [str(machine.code[pc][1]) for pc in range(len(machine.code)) if not machine.understands(pc)]
