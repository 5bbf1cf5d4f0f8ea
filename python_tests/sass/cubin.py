"""Compiles a .cu file to a cubin, and keeps what ptxas says of each kernel's resources."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from .disassembly import Function, parse_functions
from .toolchain import find_nvcc, find_nvdisasm, missing_tool

_COMPILING = re.compile(r"Compiling entry function '([^']+)'")
_PROPERTIES = re.compile(r"Function properties for (\S+)")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+)(?:\+\d+)? bytes smem")


@dataclass(frozen=True)
class Resources:
    """The resources that ptxas reports for one kernel, or for a device function that was not inlined (registers
    None)."""

    registers: int | None = None  # 32-bit ones of a thread
    stack_bytes: int = 0  # of a thread
    spill_store_bytes: int = 0
    spill_load_bytes: int = 0
    shared_bytes: int = 0  # static, of a CTA

    @property
    def spill_bytes(self) -> int:
        return self.spill_store_bytes + self.spill_load_bytes


@dataclass(frozen=True)
class Cubin:
    """A source file compiled for one architecture."""

    architecture: str
    resources: dict[str, Resources]  # mangled name -> resources
    disassembly: str  # as nvdisasm -c prints it

    @cached_property
    def functions(self) -> dict[str, Function]:
        return parse_functions(self.disassembly)

    def function(self, name: str) -> Function:
        """Returns a function by its name, or by a part of its mangled name that no other kernel has."""
        return self.functions[self.name(name)]

    def name(self, part: str) -> str:
        """Returns the full name of the one kernel whose (mangled) name is, or contains, `part`."""
        found = [name for name in self.functions if name == part] or [n for n in self.functions if part in n]
        if len(found) != 1:
            raise KeyError(
                f"{part!r} must name one kernel, got {len(found)} of {sorted(self.functions)} for {self.architecture}"
            )
        return found[0]


@cache
def compile_cubin(source: Path, architecture: str, *options: str) -> Cubin:
    """Runs nvcc -std=c++17 -O3 -cubin and `options` on `source`, for an architecture such as "sm_90".

    Raises RuntimeError if a tool is missing or does not accept its input; the message holds what the tool said.
    """
    nvcc, nvdisasm = find_nvcc(), find_nvdisasm()
    if nvcc is None or nvdisasm is None:
        raise RuntimeError(missing_tool())
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernels.cubin"
        flags = ["-std=c++17", "-O3", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", *options]
        compiled = _run([str(nvcc), *flags, str(source), "-o", str(binary)])
        disassembled = _run([str(nvdisasm), "-c", str(binary)])
    return Cubin(architecture, parse_resources(compiled.stderr + compiled.stdout), disassembled.stdout)


def parse_resources(text: str) -> dict[str, Resources]:
    """Returns name -> resources, parsed from what `-Xptxas -v` prints."""
    found: dict[str, Resources] = {}
    kernel = function = ""
    for line in text.splitlines():
        if entry := _COMPILING.search(line):
            kernel = function = entry[1]
            found[kernel] = Resources()
        elif properties := _PROPERTIES.search(line):
            function = properties[1]
            found.setdefault(function, Resources())
        elif (frame := _FRAME.search(line)) and function:
            stack, stores, loads = map(int, frame.groups())
            found[function] = replace(
                found[function], stack_bytes=stack, spill_store_bytes=stores, spill_load_bytes=loads
            )
        elif (used := _USED.search(line)) and kernel:
            shared = _SHARED.search(line)
            found[kernel] = replace(found[kernel], registers=int(used[1]), shared_bytes=int(shared[1]) if shared else 0)
    return found


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr}{done.stdout}")
    return done
