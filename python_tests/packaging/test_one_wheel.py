"""One wheel of a platform serves every Python: the file of build facts says what the compiled module `_C` says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import trbext
from python_tests.packaging.test_install import checkout, run_in
from trbext._build_file import FILE_NAME, read_build_file
from trbext._library import LIBRARY_PATH

ROOT = Path(__file__).resolve().parents[2]
FACTS = ("version", "sources", "torch_built_against", "compiler", "cuda_compiled", "cuda_archs", "cpu_isa")
BUILD_FILE = LIBRARY_PATH.with_name(FILE_NAME)


def of_another_python(folder: Path) -> Path:
    """Makes a site-packages as a wheel leaves it for a Python that it was not built by: `_C` has a suffix of no use
    there."""
    package = folder / "trbext"
    package.mkdir(parents=True)
    shutil.copy(LIBRARY_PATH, package)
    shutil.copy(BUILD_FILE, package)
    (package / "_C.cpython-399-x86_64-linux-gnu.so").write_bytes(b"for Python 3.99")
    return folder


def test_the_file_says_what_the_module_says() -> None:
    module = read_build_file(BUILD_FILE, "facts")
    for fact in FACTS:
        assert getattr(module, fact) == getattr(trbext._C, fact), fact
        assert type(getattr(module, fact)) is type(getattr(trbext._C, fact)), fact
    with pytest.raises(AttributeError, match="has no attribute 'unheard_of'"):
        _ = module.unheard_of


def test_an_installed_package_of_another_python_works(tmp_path: Path) -> None:
    site = of_another_python(tmp_path)
    shutil.copytree(ROOT / "trbext", site / "trbext", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so"))
    code = "import trbext, torch; x = torch.randn(2, 50); print(trbext._C.__file__, trbext.solve(x, -x, 0.1).kl)"
    run = run_in(site, code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(site / "trbext" / FILE_NAME))
    assert "0.1000" in run.stdout


def test_a_checkout_uses_an_install_of_another_python_but_not_of_other_sources(tmp_path: Path) -> None:
    source, site = checkout(tmp_path / "clone"), of_another_python(tmp_path / "site-packages")
    code = "sys.argv = ['trb', 'info']; runpy.run_module('trbext', run_name='__main__')"
    run = run_in(source, code, site)
    assert run.returncode == 0, run.stderr
    assert str(site / "trbext" / "libtrb_ops.so") in run.stdout
    assert trbext._C.cpu_isa in run.stdout

    with (source / "csrc" / "CMakeLists.txt").open("a", encoding="utf-8") as file:
        file.write("// another build\n")
    run = run_in(source, code, site)
    assert f"the installed trbext ({site / 'trbext'}) was built from other C++ sources" in run.stderr


def test_only_the_module_of_build_facts_depends_on_python() -> None:
    """No other compiled file may name a symbol of Python, or the tag of the wheel would be false."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    for library in LIBRARY_PATH.parent.glob("*.so"):
        listed = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True)
        assert listed.returncode == 0, listed.stderr
        of_python = [line for line in listed.stdout.splitlines() if line.split()[-1].startswith(("Py", "_Py"))]
        assert bool(of_python) == library.name.startswith("_C."), library.name
