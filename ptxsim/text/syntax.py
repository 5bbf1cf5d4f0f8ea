"""Holds the parts of a PTX text as plain data: instructions, variables, functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from ..scalar_types import DTYPES


@dataclass(frozen=True)
class Instruction:
    """One statement, its names already unique within the function."""

    line: int
    text: str
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str | None = None
    guard_negated: bool = False

    @property
    def name(self) -> str:
        """Opcode with its modifiers: `fma.rn.f32`."""
        return ".".join((self.opcode, *self.modifiers))

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@dataclass(frozen=True)
class Variable:
    """A declared variable in a state space: `.shared .align 16 .b8 tile[256]`."""

    name: str
    space: str
    type_name: str
    shape: tuple[int, ...] = ()
    align: int = 1
    unsized: bool = False
    initial: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes; 0 for `extern .shared x[]`, whose size the launch sets."""
        return 0 if self.unsized else DTYPES[self.type_name].itemsize * prod(self.shape)


@dataclass
class Body:
    """A function's instructions and declarations."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    branch_targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    names: frozenset[str] = frozenset()


@dataclass(eq=False)
class Function:
    """A `.func`, or the base of a kernel. The body is parsed when first needed: modules hold many unused kernels."""

    name: str
    params: tuple[Variable, ...]
    returns: tuple[Variable, ...]
    directives: dict[str, tuple[int, ...]]
    module: Module
    read_body: Callable[[], Body] | None

    @property
    def is_defined(self) -> bool:
        """False for an `.extern .func` such as `vprintf`."""
        return self.read_body is not None

    @cached_property
    def body(self) -> Body:
        """The parsed statements."""
        if self.read_body is None:
            raise NotImplementedError(f"function {self.name} has no body in this module")
        return self.read_body()

    @cached_property
    def callees(self) -> tuple[Function, ...]:
        """Functions with a body that this one can reach, itself first. Frames are static, so recursion is rejected."""
        reached: list[Function] = []

        def visit(function: Function, path: tuple[Function, ...]) -> None:
            if function in path:
                raise NotImplementedError(f"recursion through {function.name}")
            if function not in reached:
                reached.append(function)
            for name in sorted(function.body.names & function.module.functions.keys()):
                if function.module.functions[name].is_defined:
                    visit(function.module.functions[name], (*path, function))

        visit(self, ())
        return tuple(reached)


@dataclass(eq=False)
class Kernel(Function):
    """An `.entry`."""

    @cached_property
    def shared_layout(self) -> dict[str, int]:
        """Byte offset of every shared variable in the CTA's window; the unsized dynamic array comes last."""
        names = frozenset().union(*(function.body.names for function in self.callees))
        candidates = {v.name: v for v in self.module.variables.values() if v.space == "shared" and v.name in names}
        for function in self.callees:
            candidates |= {v.name: v for v in function.body.variables.values() if v.space == "shared"}
        layout, offset = {}, 0
        for variable in sorted(candidates.values(), key=lambda v: v.unsized):
            align = max(variable.align, 16 if variable.unsized else 1)
            offset = -(-offset // align) * align
            layout[variable.name] = offset
            offset += variable.size
        self._shared_end = offset
        return layout

    @property
    def shared_bytes(self) -> int:
        """Static shared memory per CTA, including the padding before the dynamic array."""
        _ = self.shared_layout
        return self._shared_end

    @property
    def parameter_layout(self) -> dict[str, int]:
        """Byte offset of every parameter in the kernel's parameter block."""
        layout, offset = {}, 0
        for parameter in self.params:
            align = max(parameter.align, DTYPES[parameter.type_name].itemsize)
            offset = -(-offset // align) * align
            layout[parameter.name] = offset
            offset += parameter.size
        return layout

    @property
    def required_cluster(self) -> tuple[int, int, int] | None:
        """`__cluster_dims__`, if the kernel was compiled with one."""
        dims = self.directives.get("reqnctapercluster")
        return None if dims is None else ((*dims, 1, 1)[0], (*dims, 1, 1)[1], (*dims, 1, 1)[2])


@dataclass(eq=False)
class Module:
    """A PTX text."""

    target: int
    kernels: dict[str, Kernel] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)

    @staticmethod
    def parse(text: str) -> Module:
        """Reads a PTX text.

        Raises:
            NotImplementedError: A statement is unknown; the message names it.
        """
        from .parser import parse_module

        return parse_module(text)
