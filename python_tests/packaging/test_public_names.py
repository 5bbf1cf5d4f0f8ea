"""The names that `trbext` offers are each found, are what their module defines, and are loaded at their first use."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trbext

ROOT = Path(__file__).resolve().parents[2]
OPERATORS = {"blend", "solve", "sample", "verify", "Blend", "Solution", "Sample", "TopK", "Verification"}
WITHOUT_TRANSFORMERS = sorted({*trbext.__all__} - {"TRBConfig", "TRBTrainer"})

# Imports of these fail, as if they were not installed.
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"trl", "transformers", "accelerate", "datasets"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("name", trbext.__all__)
def test_a_public_name_is_found_and_is_what_its_module_calls_so(name: str) -> None:
    found = getattr(trbext, name)
    assert found.__name__ == name
    assert getattr(sys.modules[found.__module__], name) is found


def test_public_names_are_sorted_and_listed() -> None:
    assert trbext.__all__ == sorted(set(trbext.__all__))
    assert OPERATORS <= set(trbext.__all__) <= set(dir(trbext))


def test_a_type_checker_sees_every_public_name() -> None:
    tree = ast.parse((ROOT / "trbext" / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for statement in ast.walk(tree)
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert set(trbext.__all__) <= imported


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'trbext' has no attribute 'blends'"):
        _ = trbext.blends  # type: ignore[attr-defined]


def test_a_name_is_loaded_at_its_first_use_only() -> None:
    code = (
        "import sys, trbext; before = 'trbext.rollout' in sys.modules; trbext.lockstep; "
        "print(before, 'trbext.rollout' in sys.modules, 'lockstep' in vars(trbext), 'transformers' in sys.modules)"
    )
    run = python(code)
    assert run.stdout.split() == ["False", "True", "True", "False"], run.stderr


def test_all_but_the_trainer_works_without_transformers_and_trl() -> None:
    run = python(
        f"{WITHOUT}\nimport trbext\nprint([getattr(trbext, name).__name__ for name in {WITHOUT_TRANSFORMERS}])"
    )
    assert run.stdout.strip() == str(WITHOUT_TRANSFORMERS), run.stderr


@pytest.mark.parametrize("name", ["TRBTrainer", "TRBConfig"])
def test_a_name_that_needs_a_missing_package_says_how_to_install_it(name: str) -> None:
    run = python(f"{WITHOUT}\nfrom trbext import {name}")
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1
    assert last.startswith(f"ImportError: trbext.{name} needs ")
    assert last.endswith("which is not installed: pip install 'trbext[train]'")
    assert "another exception" not in run.stderr
