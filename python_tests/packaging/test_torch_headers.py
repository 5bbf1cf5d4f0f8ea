"""trbext compiles against the headers of every torch it supports, and a library built against one loads under all.

The library's files are compiled in two units, one for the CPU and one for CUDA, without optimization and without torch
itself: five seconds of CPU time per version. The build compiles each file by itself.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from python_tests.packaging import torch_headers
from python_tests.sass.toolchain import find_nvcc

pytestmark = pytest.mark.torch_headers
ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
WEAK = "aoti_torch_get_current_cuda_stream"  # null under a torch without CUDA


def units(folder: Path) -> list[Path]:
    """Writes the units that include the C++ files of the operator library: the CPU's, and CUDA's if nvcc is found.

    Torch's headers take most of the time, and a unit reads them once. The .cu files include nothing of torch, which has
    a test of its own.
    """
    isa_flags_needed = {"float_sweep_avx2.cpp", "float_sweep_avx512.cpp"}  # and no header of torch
    of_cpu = [*CSRC.glob("*.cpp"), *CSRC.glob("cpu/**/*.cpp")]
    files = {"cpu": [path for path in of_cpu if path.name not in {"module.cpp", *isa_flags_needed}]}
    if find_nvcc() is not None:
        files["cuda"] = [*CSRC.glob("cuda/**/*.cpp")]
    for name, included in files.items():
        assert len(included) > 2
        text = "".join(f'#include "{path}"\n' for path in sorted(included))
        (folder / f"{name}.cpp").write_text(text, encoding="utf-8")
    return [folder / f"{name}.cpp" for name in files]


def compile_against(
    version: str, source: Path, output: Path, *, cuda: bool = False
) -> subprocess.CompletedProcess[str]:
    options = ["-std=c++17", "-O0", "-c", str(source), "-o", str(output), "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    headers = ["-isystem", str(torch_headers.include_folder(version))]
    hidden = ["-fPIC", "-fvisibility=hidden"]
    if cuda:  # nvcc knows where the runtime's headers are, and calls the compiler
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

    def needed_by(unit: Path) -> set[str]:
        output = unit.with_suffix(".o")
        compiled = compile_against(version, unit, output, cuda=unit.stem == "cuda")
        assert compiled.returncode == 0, f"{unit.stem} against torch {version}:\n{compiled.stderr[-3000:]}"
        return torch_headers.undefined_symbols(output)

    symbols = set().union(*map(needed_by, units(folder)))
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
