"""The words of a command line mean what they say: a field's value is no file, "~" is the home folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trbext.cli.words import parse
from trbext.runs.plot_command import labels_of


@pytest.mark.parametrize(
    ("words", "config", "fields"),
    [
        ("c.yaml --seed 3", "c.yaml", ["--seed", "3"]),
        ("--seed 3 --report_to a b", None, ["--seed", "3", "--report_to", "a", "b"]),
        ("--seed=3 c.yaml --trb_epsilon -1e-5", "c.yaml", ["--seed=3", "--trb_epsilon", "-1e-5"]),
        ("--seed 3 --resume c.yaml", "c.yaml", ["--seed", "3"]),
        ("c.yaml -- --seed 3", "c.yaml", ["--seed", "3"]),
        ("--bf16 c.yaml --seed 3", "c.yaml", ["--bf16", "--seed", "3"]),
        ("c.yaml more.yaml --seed 3", "c.yaml", ["--seed", "3", "more.yaml"]),
    ],
)
def test_a_word_after_a_field_is_its_value(words: str, config: str | None, fields: list[str]) -> None:
    options, found = parse(["train", *words.split()])
    assert options.config == (None if config is None else Path(config))
    assert found == fields
    assert options.resume == ("--resume" in words)


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("--resume auto --trb_epsilon 0.1 c.yaml", ["--trb_epsilon", "0.1"]),
        ("--resume=auto --trb_epsilon 0.1 c.yaml --seed 3", ["--trb_epsilon", "0.1", "--seed", "3"]),
        ("--resume --bf16 c.yaml", ["--bf16"]),
    ],
)
def test_a_configuration_after_a_field_may_follow_a_resumption(words: str, fields: list[str]) -> None:
    options, found = parse(["train", *words.split()])
    assert (options.config, found) == (Path("c.yaml"), fields)
    assert options.resume == ("auto" if "auto" in words else True)


def test_a_resumption_is_no_field() -> None:
    options, fields = parse(["train", "--seed", "3", "--resume", "auto", "c.yaml"])
    assert (options.resume, options.config, fields) == ("auto", Path("c.yaml"), ["--seed", "3"])


@pytest.mark.parametrize(
    ("words", "options", "fields"),
    [
        ("--trb_epsilon 0.1 c.yaml", {}, ["--trb_epsilon", "0.1"]),
        ("--limit 2 --epsilon 0.1 0.2 c.yaml", {"limit": 2, "epsilon": [0.1, 0.2]}, []),
        ("--output o.yaml --bf16 c.yaml --lengths 3 4", {"output": Path("o.yaml"), "lengths": [3, 4]}, ["--bf16"]),
        ("c.yaml --seed 3 --epsilon=0.1 --output_dir x", {"epsilon": [0.1]}, ["--seed", "3", "--output_dir", "x"]),
        ("c.yaml --epsilon 0.1 --report_to a b", {"epsilon": [0.1]}, ["--report_to", "a", "b"]),
    ],
)
def test_a_flag_of_a_probe_may_stand_before_its_configuration(
    words: str, options: dict[str, Any], fields: list[str]
) -> None:
    found, others = parse(["probe", *words.split()])
    assert (found.config, others) == (Path("c.yaml"), fields)
    assert {name: value for name, value in vars(found).items() if name in options} == options


@pytest.mark.parametrize("command", ["eval m", "probe c.yaml", "plot run", "demo"])
def test_outputs_may_be_in_the_home_folder(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    options, _ = parse([*command.split(), "--output=~/out.png"])
    assert options.output == Path("/home/me/out.png")


def test_runs_of_one_name_are_told_apart_by_their_folders() -> None:
    assert labels_of([Path("x/opd"), Path("x/trb/")]) == ["opd", "trb"]
    assert labels_of([Path("a/run"), Path("b/run")]) == ["a/run", "b/run"]
    assert labels_of([Path("a/x/run"), Path("b/x/run"), Path("c/run")]) == [
        "a/x/run",
        "b/x/run",
        f"{Path().absolute().name}/c/run",
    ]
    assert labels_of([Path("run"), Path("run")]) == ["run", "run"]


@pytest.mark.parametrize("word", ["--draft_length", "--draft-length"])
def test_the_demo_takes_the_draft_length_in_the_spelling_of_fields_and_of_options(word: str) -> None:
    assert parse(["demo", word, "3"])[0].draft_length == "3"
