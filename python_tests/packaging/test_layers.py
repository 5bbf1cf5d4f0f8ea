"""Imports between the parts of trbext run one way, and importing the operators loads neither transformers nor TRL."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "trbext"
# A part imports only from parts before it. A part without a folder is a module beside __init__.py.
FLOORS = (
    ("_C", "errors", "limits", "results", "top_k", "user_objects", "_source_digest", "_build_file"),
    ("_installed_build", "_operators", "reference"),
    ("reference_top_k",),
    ("_library",),
    ("ops",),
    ("__init__",),
    ("build_info", "models"),
    ("vocab",),
    ("teachers",),
    ("rollout",),
    ("vllm",),
    ("data",),
    ("evaluation",),
    ("training",),
    ("integrations", "verl"),
    ("trainer", "config", "runs"),
    ("studies",),
    ("cli",),
    ("__main__",),
)
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}


def part_of(module: str) -> str:
    """Returns the part of a module: that of "trbext.data.prompts" is "data"; that of "trbext" itself is "__init__"."""
    return [*module.split("."), "__init__"][1]


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """Returns the (module, name) that `file` imports of trbext when it is imported itself: not for types, not in
    functions."""
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    package = parts[:-1]
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(statement, ast.ImportFrom):
            continue
        base = package[: len(package) - statement.level + 1] if statement.level else []
        module = ".".join([*base, *([statement.module] if statement.module else [])])
        if module.split(".")[0] == "trbext":
            yield from ((module, alias.name) for alias in statement.names)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_part_imports_from_parts_before_it(file: Path) -> None:
    own = file.relative_to(PACKAGE).with_suffix("").parts[0]
    for module, name in imports(file):
        other = name if module == "trbext" and name in FLOOR else part_of(module)
        assert other == own or FLOOR[other] < FLOOR[own], f"{own} imports {name} from {module}"


@pytest.mark.parametrize(
    ("imported", "absent"),
    [("trbext", ["transformers", "trl", "numpy.testing"]), ("trbext.rollout", ["transformers", "trl"])],
)
def test_the_operators_load_nothing_heavy(imported: str, absent: list[str]) -> None:
    code = f"import sys, {imported}; print([name for name in {absent} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_no_folder_has_over_20_files_and_no_file_over_400_lines() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is not a git checkout")
    files = [Path(name) for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    folders = Counter(file.parent for file in files)
    assert [str(folder) for folder, count in folders.items() if count > 20] == []
    code = [file for file in files if file.suffix in (".py", ".h", ".cpp", ".cu", ".cuh", ".sh")]
    assert [str(file) for file in code if len((ROOT / file).read_text(encoding="utf-8").splitlines()) > 400] == []
