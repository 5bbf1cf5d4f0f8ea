"""build.toml and torch-ext/ have the layout of a kernel of the Hugging Face Hub, with the sources that CMake builds."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import trbext

ROOT = Path(__file__).resolve().parents[2]
tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11 or later")
BUILD: dict[str, Any] = tomllib.loads((ROOT / "build.toml").read_text(encoding="utf-8"))
NAMESPACE = "_trbext_ops_of_a_test"


def sources(section: dict[str, Any]) -> set[str]:
    listed: list[str] = section["src"]
    assert len(listed) == len(set(listed))
    return set(listed)


def test_the_sections_are_those_that_the_builder_requires() -> None:
    general = BUILD["general"]
    package = ROOT / "torch-ext" / general["name"].replace("-", "_")
    assert (package / "__init__.py").is_file()
    assert isinstance(general["version"], int)
    assert {kernel["backend"] for kernel in BUILD["kernel"].values()} == set(general["backends"]) == {"cpu", "cuda"}
    assert all(kernel["depends"] == ["torch"] for kernel in BUILD["kernel"].values())
    assert set(BUILD["torch"]["stable-abi"]) == set(general["backends"])
    target = re.search(r"TORCH_TARGET_VERSION=0x(..)(..)", (ROOT / "cmake" / "FindStableTorch.cmake").read_text())
    assert target is not None
    lowest = ".".join(str(int(part, 16)) for part in target.groups())
    assert {*BUILD["torch"]["stable-abi"].values(), BUILD["torch"]["minver"]} == {lowest}


def test_the_sources_are_those_that_cmake_builds_and_all_headers() -> None:
    cmake = (ROOT / "csrc" / "CMakeLists.txt").read_text(encoding="utf-8").partition("# Builds trbext._C")[0]
    built = set(re.findall(r"\b(?:cpu/|cuda/)?[\w/]+\.(?:cpp|cu)\b", re.sub("#.*", "", cmake)))
    # The generic instruction set only: the builder gives all files of a section the same flags.
    expected = {f"csrc/{name}" for name in built if "avx" not in name}
    sections = [BUILD["torch"], *BUILD["kernel"].values()]
    listed = set().union(*map(sources, sections))
    assert all((ROOT / name).is_file() for name in listed)
    assert {name for name in listed if name.endswith((".cpp", ".cu"))} == expected | {"torch-ext/torch_binding.cpp"}
    headers = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cuh")
    }
    assert {name for name in listed if name.endswith((".h", ".cuh"))} == headers
    for name, kernel in BUILD["kernel"].items():
        other = "csrc/cuda/" if kernel["backend"] == "cpu" else "csrc/cpu/"
        assert not any(source.startswith(other) for source in sources(kernel)), name


def test_every_registration_takes_the_namespace_of_the_builder() -> None:
    registering = re.compile(r"STABLE_TORCH_LIBRARY(?:_IMPL)?\(")
    files = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert not [path.name for path in files if registering.search(path.read_text(encoding="utf-8"))]
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    include = Path(torch.__file__).parent / "include"
    for source in ("csrc/schema.cpp", "csrc/cpu/row_operators.cpp"):
        for given, namespace in (([f"-DTORCH_EXTENSION_NAME={NAMESPACE}"], NAMESPACE), ([], "trb")):
            words = [compiler, "-std=c++17", "-E", "-P", "-isystem", str(include), *given, str(ROOT / source)]
            text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            registered = text[text.rindex("StableTorchLibraryInit") :]
            assert f'"{namespace}"' in registered, source


def test_the_python_package_offers_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. The operators under another name, as the builder would make them.
    names = [name + teacher for name in ("blend", "solve", "sample", "verify") for teacher in ("", "_top_k")]
    library = torch.library.Library(NAMESPACE, "DEF")
    for name in names:
        packet = getattr(torch.ops.trb, name)
        for overload in packet.overloads():
            schema = str(getattr(packet, overload)._schema)
            library.define(schema.removeprefix("trb::"))
            full = name if overload == "default" else f"{name}.{overload}"
            library.impl(full, getattr(packet, overload), "CPU")
    generated = ModuleType("trbext_ops._ops")
    generated.ops = getattr(torch.ops, NAMESPACE)  # type: ignore[attr-defined]
    generated.add_op_namespace_prefix = lambda name: f"{NAMESPACE}::{name}"  # type: ignore[attr-defined]
    folder = ROOT / "torch-ext" / "trbext_ops"
    spec = importlib.util.spec_from_file_location("trbext_ops", folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "trbext_ops", package)
    monkeypatch.setitem(sys.modules, "trbext_ops._ops", generated)
    spec.loader.exec_module(package)
    # 2. They are all there, they work, and nothing is part of a graph.
    assert sorted(package.__all__) == sorted(names)
    student, teacher = torch.randn(3, 50, requires_grad=True), torch.randn(3, 50)
    found, expected = package.blend(student, teacher, 0.1), trbext.blend(student, teacher, 0.1)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert not found[0].requires_grad
