"""Runs the operators' tests on a CPU library built with AddressSanitizer and UndefinedBehaviorSanitizer.

    python -m python_tests.cpp.sanitized            # builds it, runs the tests below and some random rows
    python -m python_tests.cpp.sanitized python_tests/operators/test_edges.py -k uniform    # pytest's arguments

Needs g++ (with libasan), cmake and pybind11, as the build does. The installed trbext is used except for libtrb_ops.so,
which is replaced when it is loaded. Any report of a sanitizer ends the run with its message and a nonzero exit status.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = [
    *(f"python_tests/operators/test_{name}.py" for name in ("edges", "usage_faults", "verify_edges", "verify_usage")),
    "python_tests/operators/test_solve.py::test_rows_that_rounding_once_took_beyond_the_budget_or_short_of_it",
]
# Its storage needs minutes to be watched.
LEFT_OUT = "not 2_to_the_31"
OPTIONS = "-w -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"


def build(folder: Path) -> Path:
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], check=True, capture_output=True, text=True
    ).stdout.strip()
    definitions = {
        "CMAKE_BUILD_TYPE": "None",
        "CMAKE_CXX_FLAGS": OPTIONS,
        "Python_EXECUTABLE": sys.executable,
        "TRB_CUDA": "OFF",
        "pybind11_DIR": pybind11,
    }
    configure = [
        "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(folder),
        *(f"-D{name}={value}" for name, value in definitions.items()),
    ]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(folder), "--target", "trb_ops", "--parallel"], check=True)
    return folder / "csrc" / "libtrb_ops.so"


def environment() -> dict[str, str]:
    compiler = shutil.which("g++") or sys.exit("python_tests.cpp.sanitized: g++ must be on PATH")
    # Without the second library ASan does not find the function that throws the exceptions of torch.
    libraries = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(str(Path(library).resolve()) for library in libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own leaks are reported otherwise
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_NUM_THREADS": "2",  # rows are dealt to threads, and so are the blocks of a row
    }


RUN = """
import sys
from pathlib import Path
import torch

library, load = sys.argv[1], torch.ops.load_library
torch.ops.load_library = lambda path: load(library if Path(path).name == "libtrb_ops.so" else path)
import trbext
assert library in torch.ops.loaded_libraries, "the library with sanitizers was not loaded"
if sys.argv[2] == "fuzz":
    from python_tests.fuzz.__main__ import main
else:
    from pytest import main
sys.exit(main(sys.argv[3:]))
"""


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="trbext-sanitized-") as folder:
        library = build(Path(folder))

        def run(what: str, *options: str) -> int:
            command = [sys.executable, "-c", RUN, str(library), what, *options]
            return subprocess.run(command, env=environment(), cwd=ROOT).returncode

        if arguments:
            return run("pytest", *arguments)
        status = run(
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--capture=sys",
            "-m",
            "not ptx and not cuda",
            "-k",
            LEFT_OUT,
            *TESTS,
        )
        return status or run("fuzz", "--rows", "2000", "--widest", "5000")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
