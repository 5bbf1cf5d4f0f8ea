"""docs/develop/claims.md names tests that exist, and has a row for each command line of the pages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from python_tests.docs.pages import PAGES, ROOT
from python_tests.docs.test_commands import PROGRAMS, command_lines

CLAIMS = ROOT / "docs" / "develop" / "claims.md"
TESTS = ROOT / "python_tests"
# The words by which a page says that something has not been run.
ADMISSIONS = ("No GPU", "no GPU", "No device was at hand", "No machine with eight", "has not been tested", "on GPUs")


def tables() -> dict[str, list[list[str]]]:
    """Returns the rows of each section's table, without its head."""
    found = {}
    for section in re.split(r"^## ", CLAIMS.read_text(encoding="utf-8"), flags=re.M)[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")][2:]
        found[section.splitlines()[0]] = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]
    return found


@cache
def names_in(file: str) -> frozenset[str]:
    """Returns the names of the tests in a file of this name, in any folder."""
    return frozenset(
        node.name
        for path in TESTS.rglob(file)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def fault_of(by: str) -> str | None:
    """Returns what is wrong with a cell "run by"."""
    for file, test in re.findall(r"\b(test_\w+\.py)(?:::(test_\w+))?", by):
        if not any(TESTS.rglob(file)) or (test and test not in names_in(file)):
            return f"{file}::{test} is gone"
    if by.startswith("not run: "):
        return None
    for each in by.split(", "):
        stage = re.fullmatch(r"\.ci/run: (.+)", each)
        if stage is not None:
            # An archive of the sources has no .ci.
            if (script := ROOT / ".ci" / "run").exists() and stage[1] not in script.read_text(encoding="utf-8"):
                return f".ci/run has no {stage[1]!r}"
            continue
        if re.fullmatch(r"test_\w+\.py::test_\w+", each) is None:
            return f"{each!r} is no test"
    return None


ROWS = [(section, row) for section, rows in tables().items() for row in rows]


@pytest.mark.parametrize(("section", "row"), ROWS, ids=[row[0][:60] for _, row in ROWS])
def test_each_claim_has_a_test_or_says_that_it_has_none(section: str, row: list[str]) -> None:
    if section == "Claims":
        _, page, by, _ = row
        text = (ROOT / page).read_text(encoding="utf-8")
        assert not by.startswith("not run") or any(word in text for word in ADMISSIONS), f"{page} does not say so"
    else:
        _, by = row
    assert fault_of(by) is None


def test_a_test_that_is_gone_and_a_row_without_one_are_seen() -> None:
    assert fault_of("test_claims.py::test_that_never_was") == "test_claims.py::test_that_never_was is gone"
    assert fault_of("test_no_such_file.py::test_a") == "test_no_such_file.py::test_a is gone"
    assert fault_of("") == "'' is no test"
    assert fault_of("test_claims.py::test_every_command_line_has_a_row, by hand") == "'by hand' is no test"
    assert fault_of("not run: see test_no_such_file.py") == "test_no_such_file.py:: is gone"
    assert fault_of(".ci/run: no such words") in (None, ".ci/run has no 'no such words'")


def commands() -> Iterator[str]:
    for page in (page for page in PAGES if page != CLAIMS):
        for line in command_lines(page, (*PROGRAMS, "bash", "uv")):
            yield re.sub(r"^python3 ", "python ", line.removeprefix(".venv/bin/"))


def test_every_command_line_has_a_row() -> None:
    rows = [row[0].strip("`") for row in tables()["Command lines"]]
    assert len(rows) == len(set(rows)) > 40
    assert set(rows) == set(commands())
