"""The tests collect with only torch, numpy, pytest and trbext, as on a GPU machine that has no more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from python_tests.packaging.optional_packages import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
BLOCKER = '''
import sys

sys.path.append({folder!r})
from python_tests.packaging.optional_packages import PACKAGES


class Blocked:
    """torch has its own use for some of them, and does without."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in PACKAGES:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Blocked())
'''


def collected(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "blocker.py").write_text(BLOCKER.format(folder=str(ROOT)), encoding="utf-8")
    search = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "blocker", "-q", "--collect-only", "-p", "no:cacheprovider", *options],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True,
    )  # fmt: skip


def test_every_file_collects_or_names_the_package_it_needs(tmp_path: Path) -> None:
    done = collected(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "test_solve.py::" in done.stdout
    assert "test_trainer.py::" not in done.stdout
    assert "needs the package trl" in done.stdout
    assert "error" not in done.stdout.splitlines()[-1]


def test_the_tests_of_a_gpu_collect(tmp_path: Path) -> None:
    done = collected(tmp_path, "-m", "cuda")
    assert done.returncode in (0, 5), done.stdout[-3000:]  # 5: without a GPU, none is left
    assert "error" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("missing", "modules"),
    [
        (("trl", "datasets", "peft", "accelerate"), "trbext.rollout, trbext.vocab"),
        (("trl", "datasets", "peft", "accelerate", "transformers", "yaml", "scipy"),
         "benchmarks.operators.blend_cuda, benchmarks.models.cuda_model, benchmarks.first_light.__main__"),
        (sorted(PACKAGES), "trbext, trbext.reference, benchmarks.first_light.smoke, benchmarks.first_light.report"),
    ],
)  # fmt: skip
def test_what_a_gpu_machine_runs_imports_without_the_rest(
    tmp_path: Path, missing: tuple[str, ...], modules: str
) -> None:
    program = BLOCKER.format(folder=str(ROOT)).replace("in PACKAGES", f"in {tuple(missing)}")
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport {modules}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_module_of_our_own_that_is_missing_is_still_an_error(tmp_path: Path) -> None:
    shutil.copy(ROOT / "python_tests" / "conftest.py", tmp_path)
    (tmp_path / "test_ours.py").write_text("import trbext.no_such_module\n", encoding="utf-8")
    done = collected(tmp_path, "--rootdir", str(tmp_path), str(tmp_path))
    assert done.returncode == 2
    assert "No module named 'trbext.no_such_module'" in done.stdout


def test_the_packages_are_those_of_the_extras() -> None:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11 or later")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {
        requirement.split(">")[0].replace("-", "_") for extra in ("train", "math") for requirement in extras[extra]
    }
    assert named - {"numpy", "pyyaml"} <= PACKAGES
