"""trbext compiles against the headers of every torch it supports, and a library built against one loads under all.

Only the files that include torch's headers are compiled, without optimization and without torch itself: ten seconds per
version.
"""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from python_tests.packaging import torch_headers
from python_tests.sass.toolchain import find_nvcc

pytestmark = pytest.mark.torch_headers
ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
WEAK = "aoti_torch_get_current_cuda_stream"  # null under a torch without CUDA


def sources() -> list[Path]:
    """Returns the C++ files of the operator library, also those for CUDA if the toolkit's headers are found.

    The .cu files include nothing of torch, which has a test of its own.
    """
    found = sorted(CSRC.glob("*.cpp")) + sorted(CSRC.glob("cpu/**/*.cpp"))
    if find_nvcc() is not None:
        found += sorted(CSRC.glob("cuda/**/*.cpp"))
    isa_flags_needed = {"float_sweep_avx2.cpp", "float_sweep_avx512.cpp"}  # and no header of torch
    return [path for path in found if path.name not in {"module.cpp", *isa_flags_needed}]


def compile_against(version: str, source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    options = ["-std=c++17", "-O0", "-c", str(source), "-o", str(output), "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    headers = ["-isystem", str(torch_headers.include_folder(version))]
    hidden = ["-fPIC", "-fvisibility=hidden"]
    if CSRC / "cuda" in source.parents:  # nvcc knows where the runtime's headers are, and calls the compiler
        command = [str(find_nvcc()), *options, *headers, "-Xcompiler", ",".join(hidden)]
    else:
        command = ["c++", *options, *headers, *hidden]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module", params=torch_headers.VERSIONS)
def needed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, set[str]]:
    """Returns a version and the functions of torch that trbext needs when it is compiled against that version."""
    version: str = request.param
    if reason := torch_headers.missing(version):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("objects")

    def needed_by(source: Path) -> set[str]:
        output = folder / (source.relative_to(CSRC).as_posix().replace("/", "_") + ".o")  # names repeat in folders
        compiled = compile_against(version, source, output)
        assert compiled.returncode == 0, f"{source.name} against torch {version}:\n{compiled.stderr[-3000:]}"
        return torch_headers.undefined_symbols(output)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        symbols = set().union(*pool.map(needed_by, sources()))
    return version, {name for name in symbols if name.startswith(("aoti_", "torch_"))}


def test_every_symbol_it_needs_is_in_every_later_and_earlier_release(needed: tuple[str, set[str]]) -> None:
    built_against, symbols = needed
    assert len(symbols) > 20
    if find_nvcc() is not None:
        assert WEAK in symbols
    for version in torch_headers.VERSIONS:
        if torch_headers.missing(version) is None:
            absent = symbols - torch_headers.exported_symbols(version)
            assert not absent, f"built against torch {built_against}, not in torch {version}: {sorted(absent)}"


def test_a_fault_in_the_source_is_noticed(tmp_path: Path) -> None:
    """The check exists for this case: torch 2.11 lacks this macro of 2.10 and of 2.12."""
    version = "2.11.0"
    if reason := torch_headers.missing(version):
        pytest.skip(reason)
    source = tmp_path / "names_the_macro.cpp"
    source.write_text(
        "#include <torch/csrc/stable/library.h>\nvoid f() { STABLE_TORCH_ERROR_CODE_CHECK(0); }\n", encoding="utf-8"
    )
    compiled = compile_against(version, source, tmp_path / "object.o")
    assert compiled.returncode != 0
    assert "STABLE_TORCH_ERROR_CODE_CHECK" in compiled.stderr


def test_no_cuda_source_includes_torch() -> None:
    """One version's headers then stand for all of them when nvcc compiles."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc")
    for source in sorted(CSRC.glob("cuda/*.cu")):
        listed = subprocess.run(
            [str(nvcc), "-std=c++17", "-arch=sm_90", "-M", str(source)], capture_output=True, text=True
        )
        assert listed.returncode == 0, listed.stderr
        assert "/torch/" not in listed.stdout, source.name
