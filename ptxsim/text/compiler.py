"""Compiles a .cu file to PTX, with a cache of results if there is a folder for it.

The environment variable PTXSIM_CACHE names the folder for calls that name none: pytest sets it for the processes of one
run, which compile the same kernels.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from python_tests.sass.toolchain import find_nvcc


def _compile(source: Path, arch: int, include: Sequence[Path], defines: Mapping[str, str], cache: Path | None) -> bytes:
    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError(
            "no nvcc: put it on PATH, set CUDA_HOME, or "
            "pip install nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt "
            "nvidia-cuda-cccl nvidia-cuda-runtime"
        )
    command = [str(nvcc), "-std=c++17", f"-arch=sm_{arch}"]
    places = [str(source), *(f"-I{directory}" for directory in include)]
    defined = [f"-D{name}={value}" if value else f"-D{name}" for name, value in sorted(defines.items())]
    if cache is None and os.environ.get("PTXSIM_CACHE"):
        cache = Path(os.environ["PTXSIM_CACHE"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if cache is not None:
            # Headers are part of the input: the preprocessed text, without its lines' places, decides, not the file's
            # date or folder.
            text = _run([*command, *defined, "-E", "-Xcompiler", "-P", *places], source)
            key = hashlib.sha256(repr(command).encode() + text).hexdigest()[:24]
            cache.mkdir(parents=True, exist_ok=True)
            stored = cache / f"{source.stem}-sm{arch}-{key}.ptx"
            if stored.exists():
                return stored.read_bytes()
        output = folder / "out.ptx"
        _run([*command, *defined, "-ptx", *places, "-o", str(output)], source)
        data = output.read_bytes()
        if cache is not None:
            partial = stored.with_suffix(f".{os.getpid()}")
            partial.write_bytes(data)
            partial.replace(stored)
        return data


def _run(command: list[str], source: Path) -> bytes:
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"nvcc failed on {source}:\n{' '.join(command)}\n{result.stderr.decode(errors='replace')}")
    return result.stdout


def compile_ptx(
    source: Path, arch: int, include: Sequence[Path] = (), defines: Mapping[str, str] = {}, cache: Path | None = None
) -> str:
    """Compiles a .cu file to PTX for `sm_<arch>`.

    Args:
        source: The file.
        arch: The architecture: 90 is sm_90.
        include: Directories of headers.
        defines: Macros.
        cache: Directory for results, keyed by the preprocessed text and the command; None: what PTXSIM_CACHE names, or
            else nothing is kept.

    Returns:
        The PTX text.

    Raises:
        FileNotFoundError: There is no nvcc.
        RuntimeError: nvcc rejects the file; the message quotes it.
    """
    return _compile(Path(source), arch, include, defines, cache).decode()
