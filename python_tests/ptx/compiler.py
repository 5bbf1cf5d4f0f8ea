"""Finding nvcc and compiling a .cu file to PTX or to a cubin, once per distinct input."""

from __future__ import annotations

import hashlib
import os
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def find_nvcc() -> Path | None:
    """nvcc on PATH, under CUDA_HOME, CUDA_PATH or /usr/local/cuda, or of the wheel nvidia-cuda-nvcc; else None."""
    on_path = shutil.which("nvcc")
    roots = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    packages = {*site.getsitepackages(), site.getusersitepackages(), *sys.path}
    wheels = [Path(p) / "nvidia" / f"cu{major}" for p in sorted(packages) for major in (13, 14)]
    candidates = [root / "bin" / "nvcc" for root in (*roots, Path("/usr/local/cuda"), *wheels)]
    if on_path is not None:
        candidates.insert(0, Path(on_path))
    return next((c for c in candidates if c.is_file() and os.access(c, os.X_OK)), None)


def _compile(
    source: Path, arch: int, kind: str, include: Sequence[Path], defines: Mapping[str, str], cache: Path | None
) -> bytes:
    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError(
            "no nvcc: put it on PATH, set CUDA_HOME, or "
            "pip install nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt "
            "nvidia-cuda-cccl nvidia-cuda-runtime"
        )
    command = [str(nvcc), "-std=c++17", f"-arch=sm_{arch}", f"-{kind}", str(source)]
    command += [f"-I{directory}" for directory in include]
    command += [f"-D{name}={value}" if value else f"-D{name}" for name, value in sorted(defines.items())]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if cache is not None:
            # Headers are part of the input: the preprocessed text decides, not the file's date.
            text = _run([*(c for c in command if c != f"-{kind}"), "-E"], source)
            key = hashlib.sha256(repr(command).encode() + text).hexdigest()[:24]
            cache.mkdir(parents=True, exist_ok=True)
            stored = cache / f"{source.stem}-sm{arch}-{key}.{kind}"
            if stored.exists():
                return stored.read_bytes()
        output = folder / f"out.{kind}"
        _run([*command, "-o", str(output)], source)
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
    """PTX of a .cu file for `sm_<arch>`.

    `cache` is a directory for results, keyed by the preprocessed text and the command.
    Raises FileNotFoundError without nvcc and RuntimeError with nvcc's own words when it refuses the file.
    """
    return _compile(Path(source), arch, "ptx", include, defines, cache).decode()


def compile_cubin(
    source: Path, arch: int, include: Sequence[Path] = (), defines: Mapping[str, str] = {}, cache: Path | None = None
) -> bytes:
    """Machine code of a .cu file, for the disassembler; as compile_ptx."""
    return _compile(Path(source), arch, "cubin", include, defines, cache)
