"""Identifies the C++ and CUDA sources of a checkout by one hash, which the build writes into `trbext._C`.

CMake runs this file as a script. The source package imports it to decide whether an installed build is of its sources.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".h", ".cpp", ".cu", ".cuh", ".cmake")


def source_files(root: Path) -> Iterator[Path]:
    """Returns the files below the checkout `root` that decide what a build makes, sorted."""
    yield root / "CMakeLists.txt"
    for folder in ("cmake", "csrc"):
        yield from sorted(
            path for path in (root / folder).rglob("*") if path.suffix in SUFFIXES or path.name == "CMakeLists.txt"
        )


def source_digest(root: Path) -> str:
    """Returns a hash of the names and contents of `source_files`. Raises OSError if `root` is no checkout."""
    digest = hashlib.sha256()
    for path in source_files(root):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:32]


if __name__ == "__main__":
    checkout = Path(sys.argv[1])
    print(source_digest(checkout))
    print(*(path.as_posix() for path in source_files(checkout)), sep="\n")  # CMake configures anew when one changes
