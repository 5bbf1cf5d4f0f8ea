"""Reads the facts of a build from the file beside its operators, if `trbext._C` was compiled for another Python.

One wheel serves every Python of a platform: `libtrb_ops.so` does not depend on Python, `trbext._C` does and only holds
facts. CMake writes the same facts to `_build.json`.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import ModuleType

FILE_NAME = "_build.json"


def read_build_file(file: Path, name: str) -> ModuleType:
    """Returns a module called `name` with the attributes of `trbext._C`.

    The operators are loaded only if `cpu_isa` is read: loading registers them, also those of a stale build.

    Args:
        file: `_build.json`, beside the `libtrb_ops.so` that it describes.
        name: The name of the module in `sys.modules`.
    """
    module = ModuleType(name, "Build information of trbext, read from a file.")
    module.__file__ = str(file)

    def attribute(wanted: str) -> str:
        if wanted != "cpu_isa":
            raise AttributeError(f"module {name!r} has no attribute {wanted!r}")
        choose = ctypes.CDLL(str(file.with_name("libtrb_ops.so"))).trb_cpu_isa
        choose.restype = ctypes.c_char_p
        isa: bytes = choose()
        return isa.decode()

    facts = json.loads(file.read_text(encoding="utf-8"))
    facts["cuda_compiled"] = bool(facts["cuda_compiled"])  # CMake's 0 or 1
    vars(module).update(facts, __getattr__=attribute)
    return module
