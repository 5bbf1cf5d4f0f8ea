"""Fetches the headers of several releases of torch, without the releases: `torch_headers.py [VERSION ...]`.

Downloads the Linux wheel of each version with pip (0.5 to 0.9 GB each, 3.5 GB in all), keeps the headers that trbext
includes and the names of the C functions that the libraries export (3 MB per version), and removes the wheel. A version
that is there already is not downloaded again. The headers are kept in $TRB_TORCH_HEADERS, by default
~/.cache/trbext/torch-headers; test_torch_headers.py compiles trbext against each version found there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# The newest release of each minor version from the first that trbext supports: a new one is added here.
VERSIONS = ("2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")
HEADERS = tuple(f"torch/include/torch/{part}/" for part in ("csrc/stable", "csrc/inductor/aoti_torch", "headeronly"))
LIBRARIES = ("torch/lib/libtorch_cpu.so", "torch/lib/libtorch_cuda.so", "torch/lib/libc10.so")
WHEEL = ("--python-version=3.12", "--implementation=cp", "--abi=cp312", "--platform=manylinux_2_28_x86_64")


SCRIPT = "python_tests/packaging/torch_headers.py"


def cache_folder() -> Path:
    return Path(os.environ.get("TRB_TORCH_HEADERS") or Path.home() / ".cache" / "trbext" / "torch-headers")


def include_folder(version: str) -> Path:
    return cache_folder() / version / "torch" / "include"


def exported_symbols(version: str) -> set[str]:
    """Returns the C functions that the libraries of this release export."""
    return set((cache_folder() / version / "symbols.txt").read_text(encoding="utf-8").split())


def missing(version: str) -> str | None:
    """Returns the reason that nothing can be compiled against this version, for a test to skip with; None if it can."""
    if (cache_folder() / version / "symbols.txt").exists():
        return None
    return f"no headers of torch {version} in {cache_folder()}: run `python {SCRIPT} {version}`"


def fetch(version: str) -> None:
    cache_folder().mkdir(parents=True, exist_ok=True)
    # On one file system with the cache, so that the last step is a rename: a version is there whole or not at all.
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        wheel, kept = _download(version, Path(scratch)), Path(scratch) / "kept"
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            archive.extractall(kept, [name for name in names if name.startswith(HEADERS) or name == "torch/version.py"])
            symbols: set[str] = set()
            for library in sorted(set(LIBRARIES) & set(names)):
                symbols |= defined_symbols(Path(archive.extract(library, scratch)))
        (kept / "symbols.txt").write_text("\n".join(sorted(symbols)), encoding="utf-8")
        kept.rename(cache_folder() / version)


def defined_symbols(library: Path) -> set[str]:
    """Returns the names that a shared library exports, without C++'s."""
    return {line.split()[-1].split("@")[0] for line in _nm("-D", "--defined-only", str(library)) if " _Z" not in line}


def undefined_symbols(object_file: Path) -> set[str]:
    return {line.split()[-1] for line in _nm("-u", str(object_file))}


def _nm(*arguments: str) -> list[str]:
    return subprocess.run(["nm", *arguments], capture_output=True, text=True, check=True).stdout.splitlines()


def _download(version: str, folder: Path) -> Path:
    """Downloads the wheel. A constraints file of the machine may hold torch back; then pip tries once more without its
    configuration files."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += [*WHEEL, "--dest", str(folder), f"torch=={version}"]
    for environment in ({}, {"PIP_CONFIG_FILE": os.devnull}):
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        if done.returncode == 0:
            return next(folder.glob("*.whl"))
    raise RuntimeError(f"pip cannot download torch {version}:\n{done.stderr}")


if __name__ == "__main__":
    for asked in sys.argv[1:] or VERSIONS:
        if missing(asked):
            print(f"torch {asked}: downloading", flush=True)
            fetch(asked)
        print(f"torch {asked}: headers in {cache_folder() / asked}", flush=True)
