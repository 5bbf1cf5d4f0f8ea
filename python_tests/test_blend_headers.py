"""csrc/blend/ compiles on its own, with warnings and undefined behaviour as errors, and passes its C++ checks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_solver_on_synthetic_sums(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    program = tmp_path / "solver_test"
    options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover"]
    source = ROOT / "python_tests" / "csrc" / "solver_test.cpp"
    subprocess.run([compiler, *options, f"-I{ROOT / 'csrc' / 'blend'}", source, "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
