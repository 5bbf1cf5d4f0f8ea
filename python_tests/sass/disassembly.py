"""Parses the machine code of a cubin into instructions, from what `nvdisasm -c` prints."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

from .kinds import Kind, kind_of

_SECTION = re.compile(r"^\.text\.(\S+):\s*$")
_LABEL = re.compile(r"^([.$\w]\S*):\s*$")
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[T\d]+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_REFERENCE = re.compile(r"`\(([^)]+)\)")
_TARGETS = re.compile(r'BRANCH_TARGETS ([^"]+)"')
_WIDTH = re.compile(r"\.(?:[US](8|16)|(?:ENL2\.)?(64|128|256))\b")


@dataclass(frozen=True)
class Instruction:
    """One instruction of 16 bytes."""

    address: int  # bytes from the start of the function
    predicate: str  # "P0", "!UP1"; "" if it always executes
    opcode: str  # with modifiers: "LDG.E.128"
    operands: str

    @cached_property
    def kind(self) -> Kind:
        return kind_of(self.opcode, self.operands)

    @property
    def base(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def width(self) -> int:
        """The bits that a load or store moves per lane."""
        found = _WIDTH.search(self.opcode.removeprefix(self.base))
        return int(found[1] or found[2]) if found else 32

    def labels(self) -> list[str]:
        """Returns the names of the places the operands refer to."""
        table = _TARGETS.search(self.operands)
        return table[1].split(",") if table else _REFERENCE.findall(self.operands)

    def __str__(self) -> str:
        predicate = f"@{self.predicate} " if self.predicate else ""
        return f"{self.address:05x} {predicate}{self.opcode} {self.operands}".rstrip()


@dataclass
class Function:
    """A kernel, with the device functions that were not inlined behind it."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # name -> address


def parse_functions(text: str) -> dict[str, Function]:
    """Returns name -> function, parsed from the output of `nvdisasm -c`."""
    functions: dict[str, Function] = {}
    current: Function | None = None
    waiting: list[str] = []  # labels whose instruction has not come yet
    for line in text.splitlines():
        if section := _SECTION.match(line):
            current = functions.setdefault(section[1], Function(section[1]))
            waiting = []
        elif label := _LABEL.match(line):
            waiting.append(label[1])
        elif current is not None and (found := _INSTRUCTION.match(line)):
            address = int(found[1], 16)
            current.labels |= dict.fromkeys(waiting, address)
            waiting = []
            current.instructions.append(Instruction(address, found[2] or "", found[3], found[4]))
    return functions
