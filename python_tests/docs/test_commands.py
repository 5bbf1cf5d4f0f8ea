"""Gives every command line of the documentation to its real parser, and runs those of Train and Compare."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.docs.pages import PAGES, ROOT
from python_tests.docs.scripts import load_script
from trbext.cli import main
from trbext.cli.words import parse
from trbext.evaluation.suite import Suite
from trbext.evaluation.verifiers import verifier_by_name
from trbext.runs.settings import parse_run
from trbext.studies.compare.declaration import read_study

PROGRAMS = ("trb", "torchrun", "accelerate", "python", "pytest", "pip")
# Replaces "python FILE" and "trb FILE", which a page leaves to the reader.
YOURS = {
    "config.yaml": "recipes/demo.yaml",
    "CONFIG.yaml": "recipes/demo.yaml",
    "STUDY.yaml": "recipes/study-countsort.yaml",
}


def command_lines(page: Path, programs: tuple[str, ...] = PROGRAMS) -> Iterator[str]:
    """Yields the commands in blocks of a shell, in indented lines, and in `code` with arguments."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, re.S | re.M)
    indented = re.findall(r"^    (\S.*)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
    spans = re.findall(r"`([a-z./]+ [^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
    for line in [*"".join(blocks).splitlines(), *indented, *spans]:
        for command in line.partition(" #")[0].split("&&"):
            words = shlex.split(command)
            if not words or program(words[0]) not in programs or "|" in words:
                continue
            if words[0] == "trb" and len(words) == 2 and command in spans:  # a mention of the command
                continue
            yield shlex.join(words)


def program(word: str) -> str:
    return re.sub(r"^python3?$", "python", word.removeprefix(".venv/bin/"))


CLAIMS = ROOT / "docs" / "develop" / "claims.md"  # repeats the commands of the other pages
LINES = sorted(
    {(page.relative_to(ROOT).as_posix(), line) for page in PAGES if page != CLAIMS for line in command_lines(page)}
)


class Parsed(Exception):
    """Raised when a command's parser has accepted its words: the command need not continue."""


@pytest.fixture
def parsing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_args(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        _, unknown = self.parse_known_args(*args, **kwargs)
        assert not unknown
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)


def check_trb(words: list[str]) -> None:
    words = [YOURS.get(word, word) for word in words]
    if not words or words == ["info"] or "--fields" in words:
        return
    options, fields = parse(words)
    if options.command in ("train", "probe"):
        parse_run(ROOT / options.config, [*fields, "--use_cpu", "true"])  # a recipe for GPUs asks for bf16
    else:
        assert not fields
    if options.command == "compare":
        read_study(ROOT / options.config)
    if options.command == "eval":
        assert options.suite is None or Suite.read(ROOT / options.suite).benchmarks
        assert options.verifier is None or verifier_by_name(options.verifier)


def check_python(words: list[str]) -> None:
    if words[:1] == ["-m"]:
        name, rest = words[1], words[2:]
        if name in ("venv", "pip", "pytest"):
            return
        if name == "trbext":
            return check_trb(rest)
        if importlib.util.find_spec(f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name) is None:
            raise AssertionError(f"there is no module {name}")
        module = importlib.import_module(f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name)
    else:
        path, rest = ROOT / words[0], words[1:]
        assert path.exists()
        if "argparse" not in path.read_text(encoding="utf-8"):
            return
        module = load_script(path)
    if not rest:
        return
    with pytest.raises(Parsed):
        module.main(rest)


def check_pip(words: list[str]) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for word in words:
        for extra in re.findall(r"(?:\.|trbext)\[([a-z,]+)\]", word):
            assert all(re.search(rf"^{name} = \[", text, re.M) for name in extra.split(",")), word


def check_pytest(words: list[str]) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    if words[:1] == ["-m"]:
        for name in re.findall(r"[a-z_]+", words[1].replace("not ", "")):
            assert f'"{name}:' in text


@pytest.mark.usefixtures("parsing_only")
@pytest.mark.parametrize(("page", "line"), LINES, ids=[line for _, line in LINES])
def test_a_command_of_the_documentation_is_one(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    first, *words = shlex.split(line)
    name = program(first)
    if name in ("torchrun", "accelerate"):
        launcher, words = words[: words.index("-m")], words[words.index("-m") :]
        if name == "torchrun":
            from torch.distributed.run import get_args_parser
        else:
            from accelerate.commands.launch import launch_command_parser as get_args_parser

            assert launcher.pop(0) == "launch"
        get_args_parser().parse_known_args([*launcher, "script"])
        for index, word in enumerate(launcher):
            if word == "--config_file":
                assert (ROOT / launcher[index + 1]).exists()
        name = "python"
    {"trb": check_trb, "python": check_python, "pip": check_pip, "pytest": check_pytest}[name](words)


def test_the_pages_have_the_commands_they_should() -> None:
    def has(page: str, command: str) -> bool:
        return any(re.search(rf"(^|/)trb {command}\b", line) for place, line in LINES if place == page)

    assert has("README.md", "demo")
    assert all(has("docs/train.md", command) for command in ("train", "eval", "plot"))
    assert all(has("docs/compare.md", command) for command in ("compare", "probe"))
    assert len(LINES) > 25


# The lines of a block share files, so they run in order; each is made short by these.
SHORT = ["--max_steps", "2", "--eval_prompts_limit", "4", "--per_device_train_batch_size", "4", "--save_steps", "1"]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Uses one thread, which is as fast for models this small, and faster beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["train", "compare"])
def test_the_commands_of_the_page_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^## Commands\n+```bash\n(.*?)^```", text, re.S | re.M)
    ran = 0
    for line in block.splitlines():
        words = shlex.split(line.partition(" #")[0])
        if words[0] != "trb" or "qwen3" in line or words[1] == "compare":  # needs several processes, a GPU, or hours
            continue
        if words[1] == "train":
            words += SHORT
        if words[1] == "eval":
            words += ["--limit", "4"]
        if words[1] == "probe":
            words += ["--limit", "4", "--max_completion_length", "12"]
        assert main(words[1:]) == 0, line
        ran += 1
    assert ran >= 1
