"""The headers that know neither torch nor CUDA compile on their own, with warnings and undefined behavior as errors,
and pass their C++ checks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "program",
    [
        "solver_test",
        "verify_requests_test",
        "tilt_interpolation_test",
        "launch_table_test",
        "launch_overrides_test",
        "driver_version_test",
    ],
)
def test_a_program_of_checks(program: str, tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover"]
    source = ROOT / "python_tests" / "cpp" / f"{program}.cpp"
    built = tmp_path / program
    subprocess.run([compiler, *options, f"-I{ROOT / 'csrc'}", source, "-o", built], check=True)
    run = subprocess.run([built], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
