"""A vLLM that trbext does not know, or that lacks what trbext uses of it, is refused in one line that says what."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from python_tests.vllm.versions.vllm_sources import Batch, Drafter, Runner, install, replace_in, write_sources
from trbext.vllm.declarations import differences, in_source
from trbext.vllm.interface import V1_USES, V2_USES
from trbext.vllm.versions import OVERRIDE, SIGNATURES_CHECKED, TESTED, check_runner, check_version, draft_model

RUNNER = "v1.worker.gpu_model_runner"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources of a vLLM that has everything, which `import vllm` finds."""
    write_sources(V1_USES, tmp_path / "vllm")
    install(monkeypatch, tmp_path / "vllm")
    return tmp_path / "vllm"


@pytest.mark.parametrize("version", ["0.21.0", "0.31.1", "0.33.1", "0.34.0", "1.0.0", "dev", "0.32.0.dev3"])
def test_an_unknown_version_is_refused_unless_told_otherwise(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OVERRIDE, raising=False)
    with pytest.raises(RuntimeError, match=rf"^vLLM must be 0\.31\.0 or 0\.32\.0, .* got {version}; {OVERRIDE}=1"):
        check_version(version)
    monkeypatch.setenv(OVERRIDE, "0")
    with pytest.raises(RuntimeError, match=OVERRIDE):
        check_version(version)
    monkeypatch.setenv(OVERRIDE, "1")
    assert check_version(version) == "untested"


def test_a_known_version_passes_with_how_far_it_is_known(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OVERRIDE, raising=False)
    assert {check_version(version) for version in TESTED} == {"run"}
    assert {check_version(version) for version in SIGNATURES_CHECKED} == {"signatures"}
    install(monkeypatch, package, "0.32.0+cu129")
    assert check_version() == "run"


def test_a_runner_with_everything_passes(package: Path) -> None:
    check_runner(Runner())


def missing(part: str, name: str) -> Runner:
    """A runner of which `part` lacks an attribute."""
    runner = Runner()
    del vars(getattr(runner, part) if part else runner)[name]
    return runner


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        (missing("", "_draft_probs"), "GPUModelRunner must have _draft_probs, got none"),
        (missing("", "seq_lens"), "GPUModelRunner must have seq_lens, got none"),
        (missing("", "effective_drafter_max_model_len"), "must have effective_drafter_max_model_len, got none"),
        (missing("input_batch", "num_prompt_tokens"), "InputBatch must have num_prompt_tokens, got none"),
        (missing("drafter", "model"), "SpecDecodeBaseProposer must have model, got none"),
        (missing("", "drafter"), "GPUModelRunner must have drafter, got none"),
    ],
)
def test_what_a_runner_lacks_is_named(package: Path, runner: Runner, message: str) -> None:
    with pytest.raises(RuntimeError, match=rf"^vLLM 0\.32\.0: .*{message}$"):
        check_runner(runner)


def test_a_method_that_takes_something_else_is_named(package: Path) -> None:
    class Later(Runner):
        def _sample(self, logits: Any, spec_decode_metadata: Any, mask: Any = None) -> Any:  # type: ignore[override]
            raise NotImplementedError

    with pytest.raises(
        RuntimeError,
        match=r"^vLLM 0\.32\.0: GPUModelRunner\._sample must take \(logits, spec_decode_metadata\), "
        r"got \(logits, spec_decode_metadata, mask\)$",
    ):
        check_runner(Later())

    class Earlier(Drafter):
        _sample_from_logits = None  # type: ignore[assignment]

    runner = Runner()
    runner.drafter = Earlier()
    with pytest.raises(RuntimeError, match=r"_sample_from_logits must take .* got no function$"):
        check_runner(runner)


def test_another_runner_is_told_which_switch_to_set(package: Path) -> None:
    with pytest.raises(RuntimeError, match=r"VLLM_USE_V2_MODEL_RUNNER=0, got .*\.Batch$"):
        check_runner(Batch())


@pytest.mark.parametrize(
    ("module", "old", "new", "message"),
    [
        ("v1.outputs", "    logprobs_tensors: int\n", "", r"v1\.outputs\.SamplerOutput must take .* got \("),
        ("v1.outputs", "    logprobs_tensors: int", "    logprobs_tensors: int\n    more: int", "tensors, more"),
        ("v1.spec_decode.metadata", "max_spec_len", "max_len", "SpecDecodeMetadata must have max_spec_len, got none"),
        ("v1.engine.input_processor", "self, params", "self, request", r"got \(request, supported_tasks\)"),
        ("v1.engine.input_processor", "def _validate_params", "def _validate", "must have _validate_params, got none"),
        ("exceptions", "VLLMValidationError", "Refused", "exceptions must have VLLMValidationError, got none"),
        (
            "model_executor.model_loader.reload.layerwise",
            "initialize_layerwise_reload(model)",
            "initialize_layerwise_reload(model, info)",
            r"initialize_layerwise_reload must take \(model\), got \(model, info\)",
        ),
    ],
)
def test_what_the_sources_lack_is_named(package: Path, module: str, old: str, new: str, message: str) -> None:
    replace_in(package, module, old, new)
    with pytest.raises(RuntimeError, match=message):
        check_runner(Runner())


def test_a_module_that_is_gone_is_named(package: Path) -> None:
    (package / "v1" / "outputs.py").unlink()
    with pytest.raises(RuntimeError, match=r"v1\.outputs must be there, for v1\.outputs\.SamplerOutput"):
        check_runner(Runner())


@pytest.mark.parametrize("uses", [V1_USES, V2_USES])
def test_every_thing_that_is_used_is_looked_for(uses: Any, tmp_path: Path) -> None:
    write_sources(uses, tmp_path)
    assert list(differences(uses, tmp_path)) == []
    for use in uses:
        others = [other for other in uses if other != use]
        if any(other.module == use.module and other.owner == use.owner for other in others):
            folder = tmp_path / use.title
            write_sources(others, folder)
            assert len(list(differences(uses, folder))) == 1, use.title


def test_declarations_are_found_however_they_are_written() -> None:
    tree = ast.parse(
        "def f(a, /, b, *args, c=1, **kwargs): ...\n"
        "class A:\n"
        "    field: int = 0\n"
        "    @property\n"
        "    def shown(self): ...\n"
        "    async def call(self, x): ...\n"
        "    def __init__(self, n):\n"
        "        self.one, self.two = n\n"
        "        other.three = 1\n"
        "        self.four.five = 1\n"
    )
    assert in_source(tree, "", "f") == (True, ("a", "b", "*args", "c", "**kwargs"))
    assert in_source(tree, "", "A") == (True, ("field",))
    for name in ("field", "shown", "one", "two"):
        assert in_source(tree, "A", name) == (True, None)
    assert in_source(tree, "A", "call") == (True, ("x",))
    for owner, name in (("A", "three"), ("A", "five"), ("A", "f"), ("", "call"), ("B", "field")):
        assert in_source(tree, owner, name) == (False, None)


def test_the_draft_model_is_found_in_old_and_new_runners() -> None:
    class WithMethod(Runner):
        def get_draft_model(self) -> str:
            return "given"

    assert draft_model(WithMethod()) == "given"
    assert draft_model(Runner()) == "student"
    wrapped = Runner()
    wrapped.drafter.model = SimpleNamespace(unwrap=lambda: "inner")  # type: ignore[assignment]
    assert draft_model(wrapped) == "inner"
    assert draft_model(SimpleNamespace()) is None
