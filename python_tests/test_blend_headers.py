"""The mathematics compiles on its own, with warnings and undefined behaviour as errors, and passes its C++ checks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("headers", "source"), [("blend", "solver_test.cpp"), ("cpu", "tilt_interpolation_test.cpp")], ids=str
)
def test_headers_on_synthetic_sums(headers: str, source: str, tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    program = tmp_path / "checks"
    options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover"]
    include, path = ROOT / "csrc" / headers, ROOT / "python_tests" / "csrc" / source
    subprocess.run([compiler, *options, f"-I{include}", path, "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
