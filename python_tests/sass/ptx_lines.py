"""Tells which line of a PTX text each machine instruction comes from, so that executed lines count instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .disassembly import Instruction, parse_functions
from .loops import converged
from .toolchain import find_nvdisasm, find_tool, missing_tool

_LINE = re.compile(r"//## File \"\.nv_debug_ptx_txt\", line (\d+)")
_ADDRESS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/")


@dataclass(frozen=True)
class PlacedInstruction:
    """A machine instruction that a converged warp can execute."""

    instruction: Instruction
    line: int  # of the PTX text


def placed_instructions(ptx: str, architecture: str) -> list[PlacedInstruction]:
    """Assembles a PTX text of one kernel, and returns its instructions with their lines.

    Args:
        ptx: The text.
        architecture: Such as "sm_90".

    Returns:
        The instructions, without those that only a diverged warp executes (the lane-by-lane twins of shuffles).

    Raises:
        RuntimeError: A tool is missing, or rejects its input.
    """
    ptxas, nvdisasm = find_tool("ptxas"), find_nvdisasm()
    if ptxas is None or nvdisasm is None:
        raise RuntimeError(missing_tool() or "ptxas must be on PATH or in the CUDA installation, got none")
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx, encoding="utf-8")
        _run([str(ptxas), f"-arch={architecture}", "--generate-line-info", str(source), "-o", str(binary)])
        text = _run([str(nvdisasm), "--print-line-info-ptx", "-c", str(binary)])
    functions = parse_functions(text)
    if len(functions) != 1:
        raise RuntimeError(f"the PTX text must hold one kernel, got {len(functions)}")
    lines = _line_of_address(text)
    return [
        PlacedInstruction(i, lines[i.address])
        for function in functions.values()
        for i in converged(function)
        if i.address in lines
    ]


def executed(code: list[PlacedInstruction], lines: Mapping[int, int]) -> dict[int, int]:
    """Returns address -> how often warps executed the instruction there.

    Args:
        code: The instructions.
        lines: Line of the PTX text -> how often warps executed it, as the interpreter counts (`Result.lines`).
    """
    return {placed.instruction.address: lines.get(placed.line, 0) for placed in code}


def _line_of_address(text: str) -> dict[int, int]:
    found: dict[int, int] = {}
    line: int | None = None
    for row in text.splitlines():
        if place := _LINE.search(row):
            line = int(place[1])
        elif (address := _ADDRESS.match(row)) and line is not None:
            found[int(address[1], 16)] = line
    return found


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr}{done.stdout}")
    return done.stdout
