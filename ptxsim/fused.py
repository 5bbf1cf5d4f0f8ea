"""Gives a * b + c, rounded once, as a numpy ufunc: compiled when it is first asked for, as numpy has none."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shlex
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("fused.c")


@cache
def compiled_fma() -> np.ufunc | None:
    """Returns the ufunc, for float32 and float64; None if this machine cannot compile it.

    The functions of `rounding.py` give the same numbers, ten to fifty times as slowly.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    options = ["-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC"]
    headers = [f"-I{folder}" for folder in (sysconfig.get_path("include"), np.get_include())]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fused.so"
        try:
            command = [*compiler, *options, *headers, str(SOURCE), "-o", str(library), "-lm"]
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        loader = importlib.machinery.ExtensionFileLoader("fused", str(library))
        spec = importlib.util.spec_from_loader("fused", loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    fma: np.ufunc = module.fma
    return fma
