"""Tests building and importing: which torch is found, TRB_CUDA, and what an uninstalled source tree says."""

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
from trbext._source_digest import source_digest

ROOT = Path(__file__).resolve().parents[2]


def build_support(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "build_support")
    return importlib.import_module(name)


def test_the_installed_torch_is_found_even_from_an_isolated_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find_torch = build_support("find_torch", monkeypatch)
    installed = Path(torch.__file__).parent
    assert find_torch.find() == installed
    # pip's isolation puts an overlay first on the path. An overlay that holds a broken torch must not be chosen.
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


def test_a_build_asks_for_torch_only_if_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
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
    # A compiler that does not exist keeps CMake from finding nvcc anywhere.
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


# An editable install's import hook would answer for the copies below.
WITHOUT_HOOK = (
    "import runpy, sys, torch; sys.meta_path = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__]; "
)


def checkout(folder: Path) -> Path:
    """Makes a copy of the sources as a clone holds them: no compiled module."""
    for name in ("trbext", "csrc", "cmake"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "countsort_models")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "CMakeLists.txt", folder)
    return folder


def run_in(folder: Path, code: str, *places: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python in `folder`, which comes first on sys.path as under `python -m`; then come `places`, and the part of
    the rest of sys.path that holds no trbext."""
    paths = [folder, *places]
    search = f"sys.path[:] = {list(map(str, paths))} + [p for p in sys.path if not Path(p, 'trbext').exists()]; "
    code = WITHOUT_HOOK + "from pathlib import Path; " + search + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)


def installed_copy(folder: Path) -> Path:
    """Makes a site-packages with the files of this build, as a plain `pip install .` leaves them."""
    package = folder / "trbext"
    package.mkdir(parents=True)
    for path in (Path(trbext._C.__file__), trbext._library.LIBRARY_PATH):
        shutil.copy(path, package)
    return folder


def test_a_checkout_without_an_install_says_what_to_do(tmp_path: Path) -> None:
    run = run_in(checkout(tmp_path), "import trbext")
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: trbext's compiled module was not found in")
    assert "This is the source folder, not an installed package: run `pip install .`" in last
    assert "circular" not in run.stderr.replace(last, "")


def test_a_checkout_uses_the_binaries_of_an_install_of_its_own_sources(tmp_path: Path) -> None:
    source = checkout(tmp_path / "clone")
    site = installed_copy(tmp_path / "site-packages")
    code = "sys.argv = ['trb', 'info']; runpy.run_module('trbext', run_name='__main__')"
    run = run_in(source, code, site)
    assert run.returncode == 0, run.stderr
    assert str(site / "trbext" / "libtrb_ops.so") in run.stdout

    with (source / "csrc" / "schema.cpp").open("a", encoding="utf-8") as file:
        file.write("// another build\n")
    run = run_in(source, code, site)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: the installed trbext ({site / 'trbext'}) was built from other C++ sources")
    assert f"run `pip install {source}` again" in last


def test_an_install_of_this_source_comes_after_one_of_another(tmp_path: Path) -> None:
    source, site = checkout(tmp_path / "clone"), installed_copy(tmp_path / "site-packages")
    (tmp_path / "older" / "trbext").mkdir(parents=True)
    (tmp_path / "older" / "trbext" / Path(trbext._C.__file__).name).write_bytes(b"no module")
    run = run_in(source, "import trbext; print(trbext._C.__file__)", tmp_path / "older", site)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(site))


def test_an_editable_install_of_older_sources_is_refused_in_one_line(tmp_path: Path) -> None:
    """The install's import hook gives the binaries to the sources of the checkout, however they have changed."""
    source = checkout(tmp_path)
    shutil.copy(trbext._C.__file__, source / "trbext")
    shutil.copy(trbext._library.LIBRARY_PATH, source / "trbext")
    run = run_in(source, "import trbext")
    assert run.returncode == 0, run.stderr

    with (source / "csrc" / "schema.cpp").open("a", encoding="utf-8") as file:
        file.write("// another build\n")
    run = run_in(source, "import trbext")
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: the editable install of trbext (")
    assert last.endswith(f"run `pip install -e {source} --no-build-isolation` again")


@pytest.mark.parametrize("launcher", [["torchrun", "--nproc_per_node", "1"], ["accelerate", "launch", "--cpu"]])
def test_launchers_run_the_package_in_the_checkout(launcher: list[str]) -> None:
    program = Path(sys.executable).parent / launcher[0]
    modules = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.accelerate_cli"}
    command = [str(program)] if program.exists() else [sys.executable, "-m", modules[launcher[0]]]
    run = subprocess.run([*command, *launcher[1:], "-m", "trbext", "info"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "libtrb_ops.so" in run.stdout


def test_a_build_carries_the_hash_of_its_sources(tmp_path: Path) -> None:
    assert source_digest(ROOT) == trbext._C.sources, "the build is older than csrc/: install again"
    source = checkout(tmp_path)
    assert source_digest(source) == trbext._C.sources
    (source / "csrc" / "cpu" / "notes.txt").write_text("not compiled", encoding="utf-8")
    assert source_digest(source) == trbext._C.sources
    (source / "csrc" / "cpu" / "sweep" / "isa.h").rename(source / "csrc" / "cpu" / "sweep" / "isa2.h")
    assert source_digest(source) != trbext._C.sources


def test_an_installed_package_holds_every_file_of_the_source() -> None:
    """These tests import the source, which would not miss a file that the wheel lacks."""
    installed = Path(trbext._C.__file__).parent
    if not (installed / "__init__.py").exists():
        pytest.skip("an editable install has no copy of the package")
    files = [path for path in (ROOT / "trbext").rglob("*") if path.is_file() and path.suffix not in (".pyc", ".so")]
    assert not [path for path in files if not (installed / path.relative_to(ROOT / "trbext")).exists()]


def test_the_package_knows_its_build() -> None:
    assert trbext.__version__ == trbext._C.version
    assert trbext._library.LIBRARY_PATH.exists()
    assert trbext._C.torch_built_against[0].isdigit()
