"""Tests load_prompts: which rows of a source become prompts, in which form and order."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture

from trbext.data.prompt_files import PromptsNotFound, read_dataset
from trbext.data.prompts import load_prompts
from trbext.data.prompts_digest import prompts_digest


@pytest.fixture
def source(tmp_path: Path) -> str:
    rows = [
        {"question": f"q{number % 4}", "solution": number, "domain": "math" if number % 2 else "code", "level": number}
        for number in range(12)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(source: str, **options: Any) -> list[Any]:
    return list(load_prompts(source, column="question", **options)["prompt"])


def test_rows_are_chosen_made_unique_and_shuffled_before_the_limit(source: str) -> None:
    assert texts(source, where="domain=math") == ["q1", "q3"] * 3
    assert texts(source, where="level=5") == ["q1"]
    assert texts(source, unique=True) == ["q0", "q1", "q2", "q3"]
    assert texts(source, where="domain=math", unique=True, limit=1) == ["q1"]
    shuffled = texts(source, unique=True, shuffle_seed=3)
    assert sorted(shuffled) == ["q0", "q1", "q2", "q3"] != shuffled
    assert (
        texts(source, unique=True, shuffle_seed=3, limit=2)
        == shuffled[:2]
        == texts(source, unique=True, shuffle_seed=3)[:2]
    )
    assert texts(source, fits=lambda batch: [text > "q1" for text in batch], limit=3) == ["q2", "q3", "q2"]


def test_answers_are_renamed_and_the_rest_of_the_row_is_kept(source: str) -> None:
    rows = load_prompts(source, column="question", answer_column="solution")
    assert rows[3] == {"prompt": "q3", "answer": 3, "domain": "math", "level": 3}
    assert load_prompts(source, column="question", answer_column="domain")[1]["answer"] == "math"


def test_the_first_human_turn_of_a_conversation_is_the_prompt(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]
    path.write_text(json.dumps({"conversations": turns}) + "\n")
    options = {"column": "conversations"}
    assert load_prompts(str(path), **options)["prompt"][0] == "hello"
    assert load_prompts(str(path), system_prompt="be brief", **options)["prompt"][0] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    ]
    path.write_text(json.dumps({"conversations": [turns[2]]}) + "\n")
    with pytest.raises(PromptsNotFound, match=r"must hold a message from 'human', got \['gpt'\]"):
        load_prompts(str(path), **options)


@pytest.mark.parametrize("name", ["run[2]", "[a]*", "q?", "k{a}"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_name_of_a_file_is_no_pattern(name: str, suffix: str, tmp_path: Path) -> None:
    for stem in (name, "run2", "a", "ab", "qx", "ka"):  # decoys, which the names match as patterns
        path = tmp_path / "in[1]" / f"{stem}{suffix}"
        path.parent.mkdir(exist_ok=True)
        rows = Dataset.from_dict({"prompt": [stem]})
        if suffix == ".jsonl":
            rows.to_json(path)
        elif suffix == ".csv":
            rows.to_csv(path, index=False)
        else:
            rows.to_parquet(path)
    assert load_prompts(str(tmp_path / "in[1]" / f"{name}{suffix}"))["prompt"][:] == [name]


def test_messages_of_roles_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "messages.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "user", "content": "hello"}]}) + "\n")
    assert load_prompts(str(path))["prompt"][0] == [{"role": "user", "content": "hello"}]


def test_a_configuration_of_a_hub_dataset_is_named_after_a_colon(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def loading(name: str, configuration: str | None, split: str) -> Any:
        asked.append((name, configuration, split))
        raise FileNotFoundError("offline")

    monkeypatch.setattr("trbext.data.prompt_files.load_dataset", loading)
    for source in ("openai/gsm8k:main", "openai/gsm8k"):
        with pytest.raises(PromptsNotFound, match="nor a dataset that can be loaded: offline"):
            load_prompts(source, split="test")
    assert asked == [("openai/gsm8k", "main", "test"), ("openai/gsm8k", None, "test")]


def test_what_is_not_there_is_named(source: str) -> None:
    for options, words in (
        ({"where": "domain"}, "a choice of rows must be 'column=value', got 'domain'"),
        ({"where": "subject=math"}, "have no column 'subject', only question, solution, domain, level"),
        ({"where": "domain=law"}, "must have a row after the choice of rows, got none"),
        ({"answer_column": "reply"}, "have no column 'reply'"),
    ):
        with pytest.raises(PromptsNotFound, match=words):
            load_prompts(source, column="question", **options)


def test_columns_are_renamed_at_once(source: str, tmp_path: Path) -> None:
    path = tmp_path / "swapped.jsonl"
    path.write_text('{"answer": "1+1=", "prompt": "2", "level": 3}\n')
    assert load_prompts(str(path), column="answer", answer_column="prompt")[0] == {
        **{"prompt": "1+1=", "answer": "2", "level": 3}
    }
    assert load_prompts(str(path), column="answer")[0] == {"prompt": "1+1=", "level": 3}
    assert load_prompts(source, column="question", answer_column="level")[5]["answer"] == 5
    with pytest.raises(PromptsNotFound, match="answer_column must be another column than that of the prompts, got 'p"):
        load_prompts(str(path), answer_column="prompt")


def test_values_of_a_file_are_as_they_are_written(tmp_path: Path) -> None:
    lines = tmp_path / "rows.jsonl"
    rows = [{"prompt": "2024-01-01", "answer": "1999-12-31T00:00:00"}, {"prompt": "b", "answer": "2000-01-01"}]
    lines.write_bytes(b"\xef\xbb\xbf" + "".join(json.dumps(row) + "\n" for row in rows).encode())
    assert list(load_prompts(str(lines))) == rows
    lines.write_text('{"prompt": "a", "level": 1}\n\n{"prompt": "b", "answer": 9007199254740993}\n')
    assert list(load_prompts(str(lines))) == [
        {"prompt": "a", "level": 1, "answer": None},
        {"prompt": "b", "level": None, "answer": 9007199254740993},
    ]
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [{"x": 1}]}]
    for rows in ([{"prompt": said, "day": "1999-12-31"}], [{"prompt": said, "day": "no date"}]):
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert read_dataset(str(lines), "train")[0] == rows[0]  # no message gets keys of another one
    table = tmp_path / "rows.csv"
    table.write_text(",prompt,answer\n0,a,7\n")  # with the index of pandas
    assert load_prompts(str(table))["answer"][:] == ["7"]
    table.write_bytes(b'\xef\xbb\xbfprompt,answer\n007,NA\n"1\n2",\nnull,1e5\n')
    found = load_prompts(str(table))
    assert found["prompt"][:] == ["007", "1\n2", "null"]
    assert found["answer"][:] == ["NA", "", "1e5"]


def rows_of(answers: list[Any], path: Path, *, as_list: bool) -> list[Any]:
    """Writes and reads rows that have the answers, and returns them as they were written."""
    rows = [{"prompt": f"{number}?", "answer": answer, "share": 2 / 3} for number, answer in enumerate(answers)]
    path.write_text(json.dumps(rows, indent=1) if as_list else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    return rows


FORMS = pytest.mark.parametrize(("name", "as_list"), [("a.json", True), ("a.json", False), ("a.jsonl", False)])


@FORMS
@pytest.mark.parametrize(
    "answers",
    [
        ["2024-01-02", "2024-01-03"],
        [["2024-01-02"], ["2024-01-03"]],
        ["007", "1e5"],
        [9007199254740993, 5],
        [0.12345678901234568, 1.0],
        [[0.5], [{"b": 1}]],
        [[{"a": 1}], [{"b": {"c": 1}}]],
    ],
    ids=str,
)
def test_values_of_json_are_as_they_are_written(answers: list[Any], name: str, as_list: bool, tmp_path: Path) -> None:
    rows = rows_of(answers, tmp_path / name, as_list=as_list)
    assert list(load_prompts(str(tmp_path / name))) == rows


@FORMS
@pytest.mark.parametrize("of", [lambda x: x, lambda x: [x], lambda x: {"a": [x]}], ids=["number", "list", "object"])
def test_whole_numbers_that_fractions_beside_them_would_round_are_refused(
    of: Any, name: str, as_list: bool, tmp_path: Path
) -> None:
    rows_of([of(2**53 + 1), of(0.5)], tmp_path / name, as_list=as_list)
    with pytest.raises(
        PromptsNotFound, match=r"value 9007199254740993 is outside of the range|is of type float, on li"
    ):
        load_prompts(str(tmp_path / name))


@FORMS
@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        ([{"a": 1}, "3.10"], "holds '3.10' beside values of another type, and would be read as 3.1"),
        ([["a"], "[1, 2]"], r"holds '\[1, 2\]' beside .* as \[1, 2\]"),
        ([5, "null"], "holds 'null' beside .* as None"),
        ([True, "true"], "holds 'true' beside .* as True"),
        ([2.5, "007"], "holds '007' beside .* as 7"),
        (["1/2", 0.12345678901234], "holds 0.12345678901234 beside .* as 0.123456789"),
        ([[{"a": 1}], [{"a": "1e5"}]], "holds '1e5' beside .* as 100000.0"),
        ([{"a": {"b": 5}}, {"a": {"b": "5"}}], "holds '5' beside .* as 5"),
    ],
    ids=str,
)
def test_a_value_that_others_of_another_type_would_change_is_refused(
    answers: list[Any], fault: str, name: str, as_list: bool, tmp_path: Path
) -> None:
    rows_of(answers, tmp_path / name, as_list=as_list)
    with pytest.raises(PromptsNotFound, match=f"row 2: 'answer' {fault}"):
        load_prompts(str(tmp_path / name))
    rows = rows_of([5, "five", True, ["1.50"], {"a": "007"}, None], tmp_path / name, as_list=as_list)
    assert list(load_prompts(str(tmp_path / name))) == rows  # none of these is changed


def test_such_values_are_refused_in_a_folder_of_json_too(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        rows_of([5, "five"], tmp_path / name, as_list=False)
    folder = str(tmp_path)
    assert load_prompts(folder)["answer"][:] == [5, "five"]
    rows_of([5, "007"], tmp_path / "test.jsonl", as_list=False)
    assert load_prompts(folder, split="train[:1]")["answer"][:] == [5]  # another split does not matter
    with pytest.raises(PromptsNotFound, match=r"test.jsonl: row 2: 'answer' holds '007' beside .* as 7$"):
        load_prompts(folder, split="train+test")
    (tmp_path / "test.jsonl").rename(tmp_path / "test.ndjson")
    with pytest.raises(PromptsNotFound, match=r"test.ndjson: row 2: 'answer' holds '007' beside"):
        load_prompts(folder, split="test")


def test_values_of_several_types_of_a_parquet_file_are_as_it_holds_them(tmp_path: Path) -> None:
    rows = {"prompt": ["a", "b", "c"], "answer": [5, "five", {"a": "007"}]}
    Dataset.from_dict(rows, on_mixed_types="use_json").to_parquet(tmp_path / "rows.parquet")
    assert load_prompts(str(tmp_path / "rows.parquet"))[:] == rows


@FORMS
def test_a_whole_number_of_more_than_64_bits_is_named(name: str, as_list: bool, tmp_path: Path) -> None:
    for of in (lambda x: x, lambda x: {"a": [x]}):
        rows_of([of(5), of(2**64)], tmp_path / name, as_list=as_list)
        with pytest.raises(PromptsNotFound, match="row 2: 'answer' holds a whole number of more than 64 bits"):
            load_prompts(str(tmp_path / name))


@pytest.mark.parametrize("row", [1, 2, 3])
def test_a_csv_row_longer_than_the_header_is_named(row: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for wide in ([row], range(row, 4)):
        path.write_text("prompt,answer\n" + "".join(f"{n},7{',' if n in wide else ''}\n" for n in range(1, 4)))
        with pytest.raises(PromptsNotFound, match=f"Expected 2 fields in line {row + 1}, saw 3") as refused:
            load_prompts(str(path))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_file_is_read_again_if_only_its_content_has_changed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    writers = {".csv": Dataset.to_csv, ".parquet": Dataset.to_parquet}
    for prompt in ("aaa", "bbb"):
        writers.get(suffix, Dataset.to_json)(Dataset.from_dict({"prompt": [prompt]}), str(path))
        os.utime(path, (1e9, 1e9))
        assert load_prompts(str(path))["prompt"][:] == [prompt]


def test_a_digest_of_prompts_with_pictures_is_that_of_their_content() -> None:
    def rows(color: str) -> Dataset:
        pictures = [Picture.new("RGB", (2, 2), color), None]
        features = Features({"prompt": Value("string"), "figure": Image()})
        return Dataset.from_dict({"prompt": ["a", "b"], "figure": pictures}, features=features)

    assert prompts_digest(rows("red")) == prompts_digest(rows("red")) != prompts_digest(rows("blue"))
    nested = Dataset.from_dict(
        {"figures": [[Picture.new("RGB", (2, 2))]]}, features=Features({"figures": List(Image())})
    )
    with pytest.raises(ValueError, match=r"prompts must hold values of JSON, dates or bytes, got a PngImageFile$"):
        prompts_digest(nested)
