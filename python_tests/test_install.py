"""Building and importing: which torch is found, TRB_CUDA, and what an uninstalled source tree says."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import trbext

ROOT = Path(__file__).resolve().parents[1]


def build_support(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "build_support")
    return importlib.import_module(name)


def test_the_installed_torch_is_found_even_from_an_isolated_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find_torch = build_support("find_torch", monkeypatch)
    installed = Path(torch.__file__).parent
    assert find_torch.find() == installed
    # pip's isolation: an overlay first on the path. One that holds a broken torch must not win.
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert find_torch.find() == installed


def test_an_old_or_missing_torch_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find_torch = build_support("find_torch", monkeypatch)
    monkeypatch.setenv("TRB_TORCH_DIR", str(tmp_path))
    assert find_torch.find() is None
    header = tmp_path / "include" / "torch" / "csrc" / "stable" / "library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    for version, usable in (("2.9.1", False), ("1.13.0", False), ("2.10.0+cu128", True), ("3.0.0", True)):
        (tmp_path / "version.py").write_text(f"__version__ = '{version}'\n")
        assert (find_torch.find() == tmp_path) is usable, version


def test_a_build_asks_for_torch_only_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scikit_build_core")
    backend = build_support("trb_backend", monkeypatch)
    for hook in (backend.get_requires_for_build_wheel, backend.get_requires_for_build_editable):
        monkeypatch.setattr(backend.find_torch, "find", lambda: Path("/somewhere/torch"))
        assert not any(requirement.startswith("torch") for requirement in hook())
        monkeypatch.setattr(backend.find_torch, "find", lambda: None)
        assert "torch>=2.10" in hook()


def configure(tmp_path: Path, **options: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake on PATH")
    if importlib.util.find_spec("pybind11") is None:
        pytest.skip("pybind11 is not installed")
    import pybind11

    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), f"-DPython_EXECUTABLE={sys.executable}"]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *(f"-D{k}={v}" for k, v in options.items())]
    # A compiler that does not exist is how CMake is kept from finding nvcc anywhere.
    environment = {**os.environ, "CUDACXX": str(tmp_path / "nvcc")}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_cuda_on_without_nvcc_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    run = configure(tmp_path, TRB_CUDA="ON")
    assert run.returncode != 0
    message = " ".join(run.stderr.split())
    assert "TRB_CUDA=ON but no working CUDA compiler" in message
    assert "Put nvcc on PATH or set CUDA_HOME, or build for the CPU with TRB_CUDA=OFF" in message


@pytest.mark.parametrize("choice", ["AUTO", "OFF"])
def test_cuda_auto_and_off_without_nvcc_build_for_the_cpu(choice: str, tmp_path: Path) -> None:
    run = configure(tmp_path, TRB_CUDA=choice)
    assert run.returncode == 0, run.stderr
    assert ("no nvcc found: building for the CPU only" in run.stdout) == (choice == "AUTO")


def test_another_value_of_trb_cuda_is_an_error(tmp_path: Path) -> None:
    run = configure(tmp_path, TRB_CUDA="yes")
    assert run.returncode != 0
    assert "TRB_CUDA must be AUTO, ON or OFF, got 'yes'" in " ".join(run.stderr.split())


def test_importing_the_source_tree_without_an_install_says_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "trbext", tmp_path / "trbext", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "ops.cpp").touch()
    # An editable install's import hook would answer for the copy.
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__];"
        f"sys.path.insert(0, {str(tmp_path)!r}); import trbext"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: trbext's compiled module was not found in")
    assert "This is the source folder, not an installed package: run `pip install .`" in last
    assert "circular" not in run.stderr.replace(last, "")


def test_the_package_knows_its_build() -> None:
    assert trbext.__version__ == trbext._C.version
    assert trbext._library.LIBRARY_PATH.exists()
    assert trbext._C.torch_built_against[0].isdigit()
