"""Removes each barrier of csrc/cuda in turn and names the first test on the PTX interpreter that notices.

    python -m python_tests.cuda.without_barriers                          # all of them: up to some minutes each
    python -m python_tests.cuda.without_barriers wide_row draw.cuh:229    # those whose FILE:LINE holds one of the words

A barrier is a __syncthreads, a __syncwarp, a fence, a sync of a cluster, or an instruction of it. Exit status 1 if the
tests pass without one: it guards nothing that they reach, so a test is missing or the barrier is not needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BARRIER = re.compile(
    r"__sync(?:threads|warp)\(\);|__threadfence\w*\(\);|cluster\.sync\([^;]*\);|"
    r'asm volatile\("(?:barrier|fence|mbarrier)[^;]*;"[^;]*\);'
)
# The quickest to notice first.
TESTS = ["python_tests/cuda/test_cuda_verify.py", "python_tests/cuda/test_cuda_rows.py"]


class Barrier(NamedTuple):
    file: Path  # in csrc/
    line: int
    begin: int
    end: int
    text: str

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line}"


def barriers(sources: Path) -> list[Barrier]:
    found = []
    for file in sorted((sources / "cuda").glob("*.cu*")):
        text = file.read_text(encoding="utf-8")
        for match in BARRIER.finditer(text):
            line_begins = text.rfind("\n", 0, match.start()) + 1
            if "//" in text[line_begins : match.start()]:
                continue
            line = text.count("\n", 0, match.start()) + 1
            found.append(Barrier(file.relative_to(sources), line, *match.span(), match.group()))
    return found


def without(barrier: Barrier, folder: Path) -> Path:
    """csrc/ with an empty statement in its place."""
    sources = Path(shutil.copytree(ROOT / "csrc", folder / "csrc"))
    text = (sources / barrier.file).read_text(encoding="utf-8")
    (sources / barrier.file).write_text(text[: barrier.begin] + ";" + text[barrier.end :], encoding="utf-8")
    return sources


def noticed_by(barrier: Barrier) -> str | None:
    """The first test that fails; None if none does."""
    with tempfile.TemporaryDirectory(prefix="trbext-barrier-") as folder:
        sources = without(barrier, Path(folder))
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS],
            env={**os.environ, "TRB_CUDA_SOURCES": str(sources / "cuda")},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    if run.returncode == 0:
        return None
    failed = re.search(r"^_+ (test_.*?) _+$", run.stdout, re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"{barrier}: pytest ended with {run.returncode}\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return failed.group(1)


def main(words: list[str]) -> int:
    chosen = [b for b in barriers(ROOT / "csrc") if not words or any(word in str(b) for word in words)]
    survivors = 0
    for i, barrier in enumerate(chosen, 1):
        print(f"[{i}/{len(chosen)}] {barrier}  {barrier.text[:50]}  ", end="", flush=True)
        test = noticed_by(barrier)
        survivors += test is None
        print(test or "NOTICED BY NO TEST", flush=True)
    print(f"{len(chosen)} barriers, {survivors} of them noticed by no test")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
