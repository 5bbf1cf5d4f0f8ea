"""Takes the machine code of the kernels out of a library that holds it, in the place of compiling them again."""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from .cubin import Cubin, Resources
from .toolchain import find_nvdisasm, find_tool

_FUNCTION = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")


@cache
def shipped_cubins(library: Path, architecture: str) -> tuple[Cubin, ...]:
    """Returns the code of one architecture, such as "sm_90", in a library; none without it or without cuobjdump.

    ptxas's counts of spills are not kept in a library. A register that is spilled has a place in the stack frame, whose
    size is.
    """
    cuobjdump, nvdisasm = find_tool("cuobjdump"), find_nvdisasm()
    if cuobjdump is None or nvdisasm is None:
        return ()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        extract = [str(cuobjdump), "--extract-elf", f".{architecture}.", str(library)]
        # A library without device code is an error for cuobjdump.
        subprocess.run(extract, cwd=folder, capture_output=True, check=False)
        for binary in sorted(Path(folder).iterdir()):
            usage, code = (
                subprocess.run([*command, str(binary)], capture_output=True, text=True, check=True).stdout
                for command in ([str(cuobjdump), "--dump-resource-usage"], [str(nvdisasm), "-c"])
            )
            resources = {
                name: Resources(registers=int(registers), stack_bytes=int(stack), shared_bytes=int(shared))
                for name, registers, stack, shared in _FUNCTION.findall(usage)
            }
            found.append(Cubin(architecture, resources, code))
    return tuple(found)
