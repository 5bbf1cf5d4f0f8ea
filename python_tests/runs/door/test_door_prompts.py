"""Prompts that cannot be used are refused in one line, before a run has a folder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from python_tests.models.tiny_models import prompts, tiny_tokenizer
from python_tests.runs.door.refusals import refusal, write
from python_tests.vllm.server.fake_server import HANDSHAKE, fake_server
from trbext.data.prompt_checks import check_encodings
from trbext.data.prompts import load_prompts
from trbext.errors import UsageError
from trbext.runs.inputs import load_inputs
from trbext.runs.settings import parse_settings
from trbext.training.config import TRBConfig
from trbext.training.trainer import TRBTrainer

ROW = {"prompt": "1+1=", "answer": "2"}


MESSAGES = [{"role": "user", "content": "1+1="}]
SHARED = [{"from": "human", "value": "1+1="}, {"from": "gpt", "value": "2"}]


# The prompts' file (rows, or its bytes), changes of the configuration, and what is said; if a "|" divides it, one or
# the other, by the version of datasets.
PROMPTS: list[tuple[list[Any] | bytes, dict[str, Any], str]] = [
    (b"", {}, "prompts 'rows.jsonl': the file holds no rows"),
    (b"\n\n", {}, "prompts 'rows.jsonl': the file holds no rows"),
    (b'{"prompt": "a"}\n{"prompt": \n', {}, "prompts 'rows.jsonl': line 2 is not JSON: Expecting value"),
    (b"[1, 2]\n", {}, "have no column 'prompt'"),
    (
        b'{"prompt": "a", "answer": 9007199254740993}\n{"prompt": "b", "answer": 1.5}\n',
        {},
        "line 2: 'answer' is of type float, on line 1 of type int",
    ),
    (b'{"prompt": "a"}\n[1]\n', {}, "prompts 'rows.jsonl': line 2 must be a JSON object, got list"),
    ('{"prompt": "grü"}\n'.encode("latin-1"), {}, "line 1 is not UTF-8: invalid start byte b'\\xfc'"),
    ([{"prompt": 1}, {"prompt": 2}], {}, "the prompt of row 1 must be text or a list of messages, got 1"),
    ([ROW, {"prompt": None, "answer": "3"}], {}, "the prompt of row 2 must be text or a list of messages, got None"),
    ([ROW, {"answer": "3"}], {}, "row 2 must be text or a list of messages, got None|KeyError: 'prompt'"),
    ([ROW, ROW, {"prompt": "", "answer": "3"}], {}, "the prompt of row 3 must not be empty, got ''"),
    ([ROW, {"prompt": " \n", "answer": "3"}], {}, "the prompt of row 2 must not be empty, got ' \\n'"),
    ([{"prompt": MESSAGES}, {"prompt": []}], {}, "the prompt of row 2 must not be empty, got []"),
    ([ROW, ROW | {"prompt": 3}], {}, "row 2 must be text or a list of messages, got 3|line 2: 'prompt' is of type int"),
    ([ROW, ROW | {"prompt": MESSAGES}], {}, "row 2 must be text, as the first one|line 2: 'prompt' is of type list"),
    ([{"prompt": ["1+1="]}], {}, "the prompt of row 1 must hold messages with a role and a content, got '1+1='"),
    ([{"prompt": [{"role": "user"}]}], {}, "must hold messages with a role and a content, got {'role': 'user'}"),
    (
        [{"prompt": SHARED}, {"prompt": None}],
        {},
        "the prompt of row 2 must be a list of messages, as the first one, got None",
    ),
    (
        [{"prompt": SHARED}, {"prompt": MESSAGES}],
        {},
        "the prompt of row 2 must hold messages with 'from' and 'value', as the first one, got {",
    ),
    ([{"prompt": SHARED}, {"prompt": SHARED[1:]}], {}, "row 2 must hold a message from 'human', got ['gpt']"),
    ([{"prompt": [{"from": "human", "content": "x"}]}], {}, "row 1 must hold messages with 'from' and 'value', as the"),
    ([{"prompt": [{"from": "human", "value": None}]}], {}, "row 1 must be text or a list of messages, got None"),
    ([ROW | {"image": "x.png"}] * 4, {}, "must be prompts of text only, got a column 'image': remove or rename it"),
    ([ROW | {"images": ["x.png"]}] * 4, {}, "must be prompts of text only, got a column 'images': remove or rename it"),
    (
        [{"prompt": [{"role": "user", "content": [{"type": "text", "text": "1+1="}, {"type": "image"}]}]}],
        {},
        "the prompt of row 1 must hold text only, got a part of type 'image'",
    ),
    ([{"prompt": MESSAGES}] * 4, {}, "need a chat template, and the tokenizer of"),
    ([ROW] * 4, {"system_prompt": "Be brief."}, "need a chat template, and the tokenizer of"),
    ([ROW] * 4, {"system_prompt": "Be brief.", "max_prompt_length": 9}, "need a chat template, and the tokenizer of"),
    ([ROW] * 3, {}, "the train_dataset must have the 4 prompts of an optimizer step, got 3"),
    ([ROW] * 8, {"gradient_accumulation_steps": 3}, "must have the 12 prompts of an optimizer step, got 8"),
    ([ROW] * 4, {"rollouts_per_prompt": 3}, "must divide the 4 rollouts of an optimizer step, got 3"),
    ([ROW] * 4, {"max_prompt_length": 3}, "must have a row after the choice of rows, got none"),
    ([ROW] * 4, {"max_completion_length": 64}, "leaves no room for a prompt in the 64 positions of the student"),
    ([ROW] * 4, {"max_completion_length": 61}, "the prompt of row 1 has 4 tokens, which with max_completion_length 61"),
    ([*[ROW] * 4, ROW | {"prompt": "1" * 57}], {}, "exceed the 64 positions of the student: leave out longer ones"),
    ([ROW] * 4, {"eval_prompts": "void.jsonl"}, "no such file of prompts: void.jsonl"),
    ([ROW] * 4, {"eval_prompts": "eval.jsonl"}, "prompts 'eval.jsonl': the prompt of row 1 must not be empty, got ''"),
    (
        [ROW] * 4,
        {"prompts": "data"},
        "prompts 'data' are neither 'demo', a .jsonl, .json, .parquet, .csv file, nor a f",
    ),
    ([ROW] * 4, {"prompts": "."}, "prompts '.' are neither 'demo', a .jsonl, .json, .parquet, .csv file, nor a folder"),
    ([ROW] * 4, {"prompts": "folder.jsonl"}, "prompts 'folder.jsonl' must be a file, got a folder"),
    ([ROW], {"prompts": "demo", "prompts_where": "a=b"}, "prompts_where must be left out with the built-in prompts 'd"),
    ([ROW], {"prompts": "demo", "prompt_column": "x"}, "prompt_column must be left out with the built-in prompts 'dem"),
    ([ROW], {"prompts": "demo", "system_prompt": "x"}, "system_prompt must be left out with the built-in prompts 'dem"),
    (
        [ROW],
        {"prompts": "demo", "max_prompt_length": 9},
        "max_prompt_length must be left out with the built-in prompts",
    ),
    ([ROW] * 4, {"prompts": "broken.parquet"}, "prompts 'broken.parquet': "),
    ([ROW] * 4, {"prompts": "broken.csv"}, "prompts 'broken.csv': "),
    ([ROW] * 4, {"eval_strategy": "steps"}, "eval_strategy steps needs eval_prompts, the held-out prompts"),
]


@pytest.mark.parametrize(("rows", "change", "message"), PROMPTS, ids=lambda value: str(value)[:60])
def test_prompts_that_cannot_be_used_are_named_before_the_run(
    rows: list[Any] | bytes,
    change: dict[str, Any],
    message: str,
    config: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
    Path("rows.jsonl").write_bytes(data)
    Path("eval.jsonl").write_bytes(b'{"prompt": ""}\n')
    Path("folder.jsonl").mkdir()
    Path("data").mkdir()
    Path("data/train.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": \n')
    Path("broken.parquet").write_bytes(b"no parquet")
    Path("broken.csv").write_bytes(b'prompt,b\n1,2,3\n"')
    line = refusal(capsys, "train", write(config | {"prompts": "rows.jsonl"} | change))
    assert any(part in line for part in message.split("|"))


def test_a_chat_template_that_refuses_a_role_is_one_line(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(config["model_name_or_path"], "student")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no role system') }}"  # as Gemma 2's
    tokenizer.save_pretrained("student")
    change = {"model_name_or_path": "student", "system_prompt": "Be brief.", "max_prompt_length": 99}
    line = refusal(capsys, "train", write(config | change))
    assert line == "trb: prompts 'prompts.jsonl' cannot be encoded: no role system"


def test_a_cache_that_cannot_be_written_is_named(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", Path("prompts.jsonl").resolve() / "cache")
    Path("prompts.csv").write_text("prompt\n1+1=\n", encoding="utf-8")
    line = refusal(capsys, "train", write(config, prompts="prompts.csv"))
    assert "read through the cache of datasets, which cannot be written" in line
    assert "set HF_HOME to a folder that can" in line


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([{"prompt": "1+1="}, {"prompt": None}], "the prompt of row 2 must be text or a list of messages, got None"),
        ([{"prompt": 1}, {"prompt": 2}], "the prompt of row 1 must be text or a list of messages, got 1"),
        ([{"prompt": "1+1="}, {"prompt": ""}], "the prompt of row 2 must not be empty, got ''"),
        ([{"prompt": MESSAGES}, {"prompt": []}], "the prompt of row 2 must not be empty, got []"),
        ([{"question": "1+1="}], "must have a column 'prompt', got question"),
    ],
)
def test_the_trainer_names_a_prompt_that_cannot_be_used(
    rows: list[Any], fault: str, models: dict[str, str], tmp_path: Path
) -> None:
    """In Python, the trainer names the prompt in the training data and in the held-out data."""
    bad, good = Dataset.from_list(rows), prompts(8)
    for train, held_out, name in ((bad, None, "train_dataset"), (good, {"a": good, "b": bad}, "eval_dataset b")):
        args = TRBConfig(str(tmp_path / "run"), use_cpu=True)
        with pytest.raises(ValueError, match=rf"{name}\b.*{re.escape(fault)}"):
            TRBTrainer(models["student"], models["teacher"], args, train, held_out)


@pytest.mark.parametrize("columns_are_known", [True, False])
@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"question": "1+1="}, "train_dataset must have a column 'prompt', got question"),
        ({"prompt": "1+1=", "image": "x.png"}, "train_dataset must be prompts of text only, got a column 'image'"),
    ],
)
def test_the_trainer_names_a_column_of_a_stream(
    row: dict[str, str], fault: str, columns_are_known: bool, models: dict[str, str], tmp_path: Path
) -> None:
    stream = Dataset.from_list([row] * 8).to_iterable_dataset()
    stream = stream if columns_are_known else stream.map(lambda row: row)
    assert (stream.column_names is not None) == columns_are_known
    with pytest.raises(ValueError, match=fault):
        TRBTrainer(
            models["student"], models["teacher"], TRBConfig(str(tmp_path), use_cpu=True, max_steps=1), stream, None
        )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"prompts": "short.jsonl"}, "use_vllm holds out the last token of a prompt, which must have two, got 1"),
        ({"vllm_max_model_length": 12}, "vllm_max_model_length must be at least 13, for a prompt of 5 tokens and max"),
        (
            {"vllm_max_model_length": 60},
            "vllm_max_model_length 60 must be within 51 tokens: the student has 64 positions, of which the engine "
            "keeps 13 past the last token",
        ),
        (
            {"max_completion_length": 47},
            "a prompt of 5 tokens and max_completion_length 47 must be within 51 tokens: the student has 64 positions",
        ),
    ],
)
def test_what_an_engine_would_refuse_in_the_middle_of_a_run_is_refused_before_it(
    change: dict[str, Any], fault: str, config: dict[str, Any]
) -> None:
    Path("short.jsonl").write_text('{"prompt": "7"}\n' * 8, encoding="utf-8")
    arguments, trb_config, _ = parse_settings(config | {"use_vllm": True, "draft_length": "auto"} | change)
    with pytest.raises(UsageError, match=fault):
        load_inputs(arguments, trb_config)


@pytest.mark.parametrize("positions", [22, 23])
def test_a_server_of_too_few_positions_is_refused_before_a_model_is_loaded(
    config: dict[str, Any], positions: int
) -> None:
    with fake_server() as server:
        facts = {"teacher": "elsewhere/teacher", "draft_length": 3, "max_model_len": positions}
        server.answers["/trb/handshake"] = (200, {**HANDSHAKE, **facts})
        of_server = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server.url, "draft_length": 3}
        arguments, trb_config, _ = parse_settings(config | of_server)
        if positions == 23:
            load_inputs(arguments, trb_config)
            return
        with pytest.raises(UsageError, match=r"--max-model-len of at least 23.* up to 13 tokens together"):
            load_inputs(arguments, trb_config)


def test_prompts_that_end_with_the_eos_token_are_warned_of(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    rows = load_prompts("prompts.jsonl")
    check_encodings(rows, "prompts.jsonl", tokenizer, {}, 8, {})
    assert "40 of 40 prompts end with the EOS token '<eos>'" in caplog.text
    caplog.clear()
    check_encodings(rows, "prompts.jsonl", tiny_tokenizer(), {}, 8, {})
    assert not caplog.text
