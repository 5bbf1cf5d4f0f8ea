"""A verl with which trbext was not run, or that lacks what trbext uses of it, is refused in one line that says what."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from python_tests.vllm.versions.vllm_sources import replace_in, write_sources
from trbext.verl.interface import USES
from trbext.verl.versions import OVERRIDE, TESTED, check_interface, check_version


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources of a verl that has everything, which `import verl` finds."""
    write_sources(USES, tmp_path / "verl")
    module = ModuleType("verl")
    module.__file__, module.__version__ = str(tmp_path / "verl" / "__init__.py"), "0.9.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "verl", module)
    return tmp_path / "verl"


@pytest.mark.parametrize("version", ["0.9.0", "0.9.2", "0.10.0", "1.0.0", "0.9.1.dev0", "dev"])
def test_a_version_that_was_not_run_is_refused_unless_told_otherwise(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(OVERRIDE, raising=False)
    with pytest.raises(RuntimeError, match=rf"^verl must be 0\.9\.1, .* got {version}; {OVERRIDE}=1 tries it$"):
        check_version(version)
    monkeypatch.setenv(OVERRIDE, "1")
    assert check_version(version) == "untested"


def test_the_version_that_was_run_passes(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OVERRIDE, raising=False)
    assert {check_version(version) for version in TESTED} == {"run"}
    assert check_version() == "run"
    check_interface()


@pytest.mark.parametrize(
    ("module", "old", "new", "message"),
    [
        ("trainer.distillation.losses", "def compute_topk_loss(", "def compute_loss(", "must have compute_topk_loss"),
        ("workers.rollout.vllm_rollout.utils", "peft_config, base_sync_done", "peft_config", "must take"),
    ],
)
def test_what_is_missing_or_takes_other_arguments_is_named(
    package: Path, module: str, old: str, new: str, message: str
) -> None:
    replace_in(package, module, old, new)
    with pytest.raises(RuntimeError, match=rf"^verl 0\.9\.1: .*{message}"):
        check_interface()
