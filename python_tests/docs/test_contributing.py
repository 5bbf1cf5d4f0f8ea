"""CONTRIBUTING.md, the pre-commit hooks and the workflows agree with pyproject.toml and .ci/run."""

from __future__ import annotations

import re
import shlex
import sys
from typing import Any

import pytest
import yaml

from python_tests.docs.pages import ROOT

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def pinned(text: str) -> dict[str, str]:
    """Returns the packages that `text` pins to one version."""
    return dict(re.findall(r'"([\w-]+)==([\w.]+)"', text))


def hooks() -> list[dict[str, Any]]:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    return [hook for repository in config["repos"] for hook in repository["hooks"]]


def test_hooks_have_the_versions_of_the_extra_dev() -> None:
    developers = pinned(PYPROJECT)
    assert {"ruff", "mypy", "clang-format"} <= developers.keys()
    of_hooks = [word for hook in hooks() for word in hook.get("additional_dependencies", [])]
    assert len(of_hooks) >= 3
    for word in of_hooks:
        package, _, version = word.partition("==")
        assert developers[package] == version, word


def test_hooks_run_every_linter_of_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    stage = ci.split('stage "linters"\n')[1].split("\n}")[0]
    linters = {shlex.split(line)[0].split("/")[-1] for line in stage.splitlines()}
    assert linters == {"ruff", "mypy", "clang-format"}
    assert {hook["entry"].split()[0] for hook in hooks()} == linters
    assert {"ruff check --force-exclude", "ruff format --force-exclude"} <= {hook["entry"] for hook in hooks()}


def test_the_workflow_runs_ci_and_the_wheels_build_as_pyproject_says() -> None:
    workflows = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / ".github").rglob("*.yml")
    }
    commands = {
        name: [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
        for name, workflow in workflows.items()
    }
    assert ".ci/run" in commands["ci"]
    assert any("cibuildwheel" in command for command in commands["wheels"])
    assert "[tool.cibuildwheel]" in PYPROJECT


def parts(path: str) -> tuple[str, list[str], str]:
    """Splits the shell's test_{a,b}.py into "test_", ["a", "b"], ".py"."""
    before, brace, rest = path.partition("{")
    names, _, after = rest.partition("}")
    return (before, names.split(","), after) if brace else (path, [""], "")


def test_the_quick_tests_exist_and_none_needs_nvcc() -> None:
    (block,) = re.findall(r"<!-- quick tests -->\n```bash\n(.*?)```", CONTRIBUTING, re.S)
    count = 0
    for line in block.splitlines():
        assert line.startswith("pytest ")
        for path in re.findall(r"python_tests/\S+", line):
            before, names, after = parts(path)
            for name in names:
                text = (ROOT / (before + name + after)).read_text(encoding="utf-8")
                needs_nvcc = re.search(r"^(?:@pytest|pytestmark|from|import).*ptx", text, re.M) is not None
                assert not needs_nvcc or '-m "not ptx"' in line, path
                count += 1
    assert count > 6


def test_the_license_is_named_and_shipped() -> None:
    assert 'license = "Apache-2.0"' in PYPROJECT
    assert 'license-files = ["LICENSE"]' in PYPROJECT
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs tomllib")
def test_the_wheel_is_for_every_python_and_holds_no_library_of_torch() -> None:
    import tomllib

    tools = tomllib.loads(PYPROJECT)["tool"]
    assert tools["scikit-build"]["wheel"]["py-api"] == "py3"
    wheels = tools["cibuildwheel"]
    assert "--exclude 'libtorch*.so'" in wheels["linux"]["repair-wheel-command"]
    assert wheels["macos"]["archs"] == ["arm64"]
    script = (ROOT / "build_support" / "one_wheel.sh").read_text(encoding="utf-8")
    for library in ("'libtorch*.so'", "'libc10*.so'"):
        assert f"--exclude {library}" in script
