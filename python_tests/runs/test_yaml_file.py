"""Tests YAML files: numbers of YAML 1.2, merge keys, one meaning per file in every locale, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from trbext.data.yaml_file import dump_yaml, read_yaml
from trbext.errors import UsageError


def read(tmp_path: Path, text: str | bytes) -> dict[str, Any]:
    path = tmp_path / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path)


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("1e-6", 1e-6),
        ("1E6", 1e6),
        ("+12e03", 12e3),
        (".5", 0.5),
        ("1.", 1.0),
        ("1.5e-4", 1.5e-4),
        ("010", 10),
        ("0o17", 15),
        ("0x10", 16),
        ("-3", -3),
        ("-.inf", -math.inf),
        ("2026_11", "2026_11"),
        ("1_000.5", "1_000.5"),
        ("1:30", "1:30"),
        ("2026-11-28", "2026-11-28"),
        ("0b11", "0b11"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("no", False),
        ("~", None),
        ("'1e-6'", "1e-6"),
    ],
)
def test_scalars_are_read_as_yaml_1_2_reads_them(written: str, read_as: object, tmp_path: Path) -> None:
    found = read(tmp_path, f"value: {written}\nmapping: {{value: {written}}}\n")
    for value in (found["value"], found["mapping"]["value"]):
        assert value == read_as
        assert type(value) is type(read_as)


def test_merge_keys_work_and_own_values_win(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: [*b, *a], z: 4}\nd: {<<: *b, x: 5}\n"
    found = read(tmp_path, text)
    assert found["b"] == {"x": 1, "y": 3}
    assert found["c"] == {"x": 1, "y": 3, "z": 4}
    assert found["d"] == {"x": 5, "y": 3}


def test_files_are_utf_8_or_utf_16(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert read(tmp_path, "value: grü 教師\n".encode(encoding)) == {"value": "grü 教師"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "names 'a' twice"),
        ("a: {x: 1, x: 2}", "names 'x' twice"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "names '<<' twice: merge several mappings as <<: [*a, *b]"),
        ("a: {<<: 1}", "<< must name another mapping, or a list of them"),
        ("a: &a {<<: *a}", "<< must name another mapping, or a list of them"),
        ("a: {<<: *b}", "is not YAML: found undefined alias 'b'"),
        ("1: 2", "names must be text, got 1: quote it"),
        ("null: 2", "names must be text, got None: quote it"),
        ("a: {yes: 2}", "names must be text, got True: quote it"),
        ("? [1]\n: 2", "found unhashable key"),
        ("- 1", "must hold fields and values, got list"),
        ("", "must hold fields and values, got NoneType"),
        ("a: &a [*a]", "an alias (*name) is inside what it names"),
        ("a: !!set {b, c}", "values are text, numbers, lists and mappings, got set"),
        ("a: " + "[" * 5000, "nests deeper than can be read"),
        ("a: [", "is not YAML"),
        ("a: 1\n---\nb: 2", "is not YAML: expected a single document"),
        ("a: grü".encode("latin-1"), "must be a text file in UTF-8"),
    ],
)
def test_other_files_are_refused_by_name(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"file\.yaml") as refused:
        read(tmp_path, text)
    assert message in str(refused.value)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    settings = {
        "texts": ["1e-6", "010", "yes", "~", "1:30", "2026_11", "2026-11-28", "=", "<<", "-x", "grü", ""],
        "numbers": [1e-6, 1e22, 10, -0.5, True, None, math.inf],
        "points": {0: 0.1, 20: 0.0},
    }
    assert read(tmp_path, dump_yaml(settings, sort_keys=False)) == settings
