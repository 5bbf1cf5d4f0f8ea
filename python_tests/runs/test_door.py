"""Every fault of the user: exit code 2, one line that names it, and no folder. A new fault is a new row of a table."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from python_tests.models.tiny_models import prompts, saved, tiny_llama, tiny_tokenizer
from trbext.cli import OF_THE_EXTRA, main
from trbext.data.prompt_checks import check_encodings
from trbext.data.prompts import load_prompts
from trbext.models.loading import load_for_inference
from trbext.rollout import Policy
from trbext.runs.settings import parse_run
from trbext.training.config import TRBConfig
from trbext.training.trainer import TRBTrainer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer()
    return {name: saved(folder / name, tiny_llama(seed), tokenizer) for seed, name in enumerate(("student", "teacher"))}


@pytest.fixture
def config(tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run of a few seconds on two tiny models, in `tmp_path`, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{n}+{n % 7}=", "answer": str(n)} for n in range(10, 50)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "model_name_or_path": models["student"],
        "teacher_model_name_or_path": models["teacher"],
        "prompts": "prompts.jsonl",
        "output_dir": "run",
        "max_completion_length": 8,
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "draft_length": 3,
        "save_strategy": "no",
        "use_cpu": True,
    }


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that `trb` says of a fault of the user."""
    before = set(Path().iterdir())
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("trb: ")
    assert set(Path().iterdir()) == before
    return lines[0]


def write(config: dict[str, Any], **changes: Any) -> str:
    """The file of a configuration; `config.yaml` is written anew."""
    Path("config.yaml").write_text(yaml.safe_dump(config | changes), encoding="utf-8")
    return "config.yaml"


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"trb_epsilon": [0.1]}, "trb_epsilon must be one value, got the list [0.1]"),
    ({"trb_epsilon": {"a": 1}}, "trb_epsilon must be one value, got the mapping"),
    ({"trb_epsilon": None}, "trb_epsilon must have a value, got null"),
    ({"trb_epsilon": -1e-5}, "trb_epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got -1e-05"),
    ({"trb_epsilon": True}, "trb_epsilon must be a number, got true"),
    ({"max_steps": 2.5}, "invalid int value: '2.5'"),
    ({"output_dir": 2026}, "output_dir is text, which YAML reads as 2026: quote it"),
    ({"system_prompt": True}, "system_prompt is text, which YAML reads as True: quote it"),
    ({"prompt_column": 16}, "prompt_column is text, which YAML reads as 16: quote it"),
    ({"lr_scheduler_type": 1}, "lr_scheduler_type is text, which YAML reads as 1: quote it"),
    ({"report_to": [1]}, "report_to is a list of text, of which YAML reads an entry as 1: quote it"),
    ({"chat_template_kwargs": "{a"}, "a mapping on the command line is written as JSON, got '{a'"),
    ({"accelerator_config": {"splits": 1}}, "unexpected keyword argument 'splits'"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be a whole number of at least 1, got 0"),
    ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size must be a whole number of at least 1, got 0"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be a whole number of at least 1, got 0"),
    ({"learning_rate": -1}, "learning_rate must be a number >= 0, and finite, got -1"),
    ({"learning_rate": float("nan")}, "learning_rate must be a number >= 0, and finite, got nan"),
    ({"learning_rate": float("inf")}, "learning_rate must be a number >= 0, and finite, got inf"),
    ({"weight_decay": float("nan")}, "weight_decay must be a number >= 0"),
    ({"max_grad_norm": float("nan")}, "max_grad_norm must be a number >= 0"),
    ({"adam_beta2": 1}, "adam_beta2 must be a number with 0 <= x < 1, got 1.0"),
    ({"max_steps": 0}, "max_steps must be at least 1, or -1 for num_train_epochs, got 0"),
    ({"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs must be a number > 0, and finite, got 0.0"),
    ({"save_steps": 0}, "save_steps must be a number > 0"),
    ({"logging_steps": -1}, "logging_steps must be a number > 0"),
    ({"seed": -1}, "seed must be a whole number with 0 <= x < 2^32, got -1"),
    ({"temperature": 0}, "temperature must be a number from 1e-6 to 1e6, got 0.0"),
    ({"temperature": 1e-39}, "temperature must be a number from 1e-6 to 1e6, got 1e-39"),
    ({"temperature": 1e7}, "temperature must be a number from 1e-6 to 1e6, got 10000000.0"),
    ({"temperature": float("inf")}, "temperature must be a number from 1e-6 to 1e6, got inf"),
    ({"rollout_policy": "student", "top_p": 0}, "top_p must be a share with 0 < top_p <= 1, got 0.0"),
    ({"prompts_limit": 0}, "prompts_limit must be a whole number of at least 1, got 0"),
    ({"eval_prompts_limit": -1}, "eval_prompts_limit must be a whole number of at least 1, got -1"),
    ({"max_prompt_length": 0}, "max_prompt_length must be a whole number of at least 1, got 0"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs {} do not fit lr_scheduler_type"),
    (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}},
        "do not fit lr_scheduler_type 'cosine': get_cosine_schedule_with_warmup() got an unexpected keyword argument",
    ),
    ({"optim": "adamw_bnb_8bit"}, "optim 'adamw_bnb_8bit' cannot be used here"),
    ({"optim": "galore_adamw"}, "optim 'galore_adamw' cannot be used here: You need to install `galore_torch`"),
    ({"report_to": "clearml"}, "report_to: clearml cannot be used here"),
    ({"report_to": ["clearml"]}, "report_to: clearml cannot be used here"),
    ({"report_to": "nobody"}, "report_to must be none, all, or of"),
    ({"report_to": ["none", "all"]}, "report_to must be none, all, or of"),
    ({1: 2}, "names must be text, got 1: quote it"),
    (
        {"loss_top_k": 65},
        "loss_top_k must be at most the 64 tokens that the models share, got 65: leave it out for the",
    ),
    (
        {"resume_from_checkpoint": "run/checkpoint-1"},
        "is no field of a run, which goes on from its last checkpoint wit",
    ),
]


@pytest.mark.parametrize(("change", "message"), FIELDS, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_a_field_that_cannot_be_is_refused(
    change: dict[Any, Any], message: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, "train", write(config | change))


ROW = {"prompt": "1+1=", "answer": "2"}
MESSAGES = [{"role": "user", "content": "1+1="}]

# The prompts' file (rows, or its bytes), changes of the configuration, and what is said; where a "|" divides it, one or
# the other, by the version of datasets.
PROMPTS: list[tuple[list[Any] | bytes, dict[str, Any], str]] = [
    (b"", {}, "prompts 'rows.jsonl': the file holds no rows"),
    (b"\n\n", {}, "prompts 'rows.jsonl': the file holds no rows"),
    (b'{"prompt": "a"}\n{"prompt": \n', {}, "prompts 'rows.jsonl': line 2 is not JSON: Expecting value"),
    (b"[1, 2]\n", {}, "have no column 'prompt'"),
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
    ([{"prompt": MESSAGES}] * 4, {}, "need a chat template, and the tokenizer of"),
    ([ROW] * 4, {"system_prompt": "Be brief."}, "need a chat template, and the tokenizer of"),
    ([ROW] * 4, {"system_prompt": "Be brief.", "max_prompt_length": 9}, "need a chat template, and the tokenizer of"),
    ([ROW] * 3, {}, "an optimizer step takes 4 prompts, the train_dataset has 3"),
    ([ROW] * 8, {"gradient_accumulation_steps": 3}, "an optimizer step takes 12 prompts, the train_dataset has 8"),
    ([ROW] * 4, {"rollouts_per_prompt": 3}, "an optimizer step takes 4 rollouts, no multiple of rollouts_per_prompt 3"),
    ([ROW] * 4, {"max_prompt_length": 3}, "have no row that was asked for"),
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


def test_values_that_begin_with_a_dash_are_no_options(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(config)
    for words in (["--trb_epsilon", "-1e-5"], ["--trb_epsilon=-1e-5"], ["--trb_epsilon", "-.00001"]):
        assert "trb_epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got -1e-05" in refusal(
            capsys, "train", path, *words
        )
    assert "must be a number >= 0, and finite, got -inf" in refusal(capsys, "train", path, "--learning_rate", "-inf")
    arguments, parsed, _ = parse_run(Path(write(config, system_prompt="-x", output_dir="-runs")), [])
    assert (arguments.system_prompt, parsed.output_dir) == ("-x", "-runs")


def test_null_is_unset_where_a_field_may_be_and_lists_and_mappings_keep_their_types(config: dict[str, Any]) -> None:
    options = {"enable_thinking": "5", "n": 5}
    path = write(
        config, eval_verifier=None, report_to=[], chat_template_kwargs=options, eval_strategy=False, label_names=["a"]
    )
    _, parsed, settings = parse_run(Path(path), [])
    assert (parsed.eval_verifier, parsed.report_to, parsed.eval_strategy.value) == (None, [], "no")
    assert (parsed.chat_template_kwargs, parsed.label_names) == (options, ["a"])
    assert settings["eval_verifier"] is None
    assert parse_run(Path(write(config, report_to=None)), [])[1].report_to == []


def test_a_cache_that_cannot_be_written_is_named(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", Path("prompts.jsonl").resolve() / "cache")
    line = refusal(capsys, "train", write(config))
    assert "read through the cache of datasets, which cannot be written" in line
    assert "set HF_HOME to a folder that can" in line


MODULE = """
from trbext.rollout import Policy
from trbext.rollout.policies import FixedBeta

def two(prompt, completion): return True
def keywords(prompt, completion, *, row): return True
async def later(prompt, completion, row): return True
def raises(prompt, completion, row): return row["solution"] == completion
def nothing(prompt, completion, row): pass
def score(prompt, completion, row): return 0.5
def word(prompt, completion, row): return "no"
def needs_text(prompt, completion, row): return bool(completion[0])
class Judge:
    def __init__(self, prompt, completion, row): pass

class NoDraw(Policy): pass
class Short(Policy):
    def draw(self, student_logits, teacher_logits): pass
class Needs(FixedBeta):
    def needs_teacher(self): return True
class Strict(FixedBeta):
    def __init__(self, beta): raise RuntimeError("no")
def function(beta=0.5): return beta
"""
VERIFIERS = [
    ("two", "the verifier 'mine:two' must take (prompt, completion, row), but takes (prompt, completion)"),
    ("keywords", "must take (prompt, completion, row), but takes (prompt, completion, *, row)"),
    ("later", "the verifier 'mine:later' must be a plain function that returns True or False, not async"),
    ("Judge", "the verifier 'mine:Judge' must be a function, got the class Judge"),
    ("raises", "the verifier 'mine:raises' raises on every completion of the first prompts, at first KeyError"),
    ("nothing", "raises on every completion of the first prompts, at first TypeError: a verifier must return True or"),
    ("score", "a verifier must return True or False, got 0.5"),
    ("word", "a verifier must return True or False, got 'no'"),
    ("void", "the verifier 'mine:void' could not be imported"),
    ("numeric", "the verifier 'numeric' raises on every completion of the first prompts, at first KeyError: 'answer'"),
]
POLICIES: list[tuple[str, dict[str, Any] | None, str]] = [
    ("NoDraw", None, "the rollout policy 'mine:NoDraw' must define draw(step, student_logits, teacher_logits, unif"),
    ("Short", None, "draw of the rollout policy 'mine:Short' must take (step, student_logits, teacher_logits, unif"),
    ("Needs", {"beta": 0.5}, "needs_teacher of the rollout policy 'mine:Needs' must take (step), but takes ()"),
    ("Needs", None, "got rollout_policy_kwargs none: missing a required argument: 'beta'"),
    ("Needs", {"beta": 0.5, "alpha": 1}, "got rollout_policy_kwargs alpha, beta: got an unexpected keyword argument"),
    ("Strict", {"beta": 0.5}, "the rollout policy 'mine:Strict' could not be made: RuntimeError: no"),
    ("function", None, "the rollout policy 'mine:function' must make a trbext.rollout.Policy, got float"),
    ("void", None, "the rollout policy 'mine:void' could not be imported"),
]


@pytest.fixture
def mine(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's in the working folder."""
    Path("mine.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # __pycache__ would be a folder that was made
    monkeypatch.syspath_prepend(Path.cwd())


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(("name", "message"), VERIFIERS)
def test_verifiers_that_cannot_judge_are_refused(
    name: str, message: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    verifier = name if name == "numeric" else f"mine:{name}"
    Path("questions.jsonl").write_text('{"prompt": "1+1="}\n' * 4, encoding="utf-8")
    words = ["--eval_verifier", verifier, "--eval_prompts", "questions.jsonl"]
    assert message in refusal(capsys, "train", write(config), *words)
    of_eval = ["eval", config["model_name_or_path"], "--prompts", "questions.jsonl", "--verifier", verifier]
    assert message in refusal(capsys, *of_eval, "--max-completion-length", "4", "--output", "out.jsonl")


@pytest.mark.usefixtures("mine")
def test_a_verifier_that_raised_on_every_completion_is_an_error(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not seen beforehand: it raises on empty completions, and the model writes nothing else."""
    monkeypatch.setattr(PreTrainedTokenizerFast, "decode", lambda self, *_, **__: "")
    words = ["eval", config["model_name_or_path"], "--prompts", "prompts.jsonl", "--verifier", "mine:needs_text"]
    assert main([*words, "--limit", "4", "--max-completion-length", "4"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(
        "trb: the verifier raised on all 4 completions, at first IndexError: string index out of range"
    )


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(("name", "kwargs", "message"), POLICIES)
def test_policies_that_cannot_write_are_refused(
    name: str,
    kwargs: dict[str, Any] | None,
    message: str,
    config: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    change = {"rollout_policy": f"mine:{name}"} | ({} if kwargs is None else {"rollout_policy_kwargs": kwargs})
    assert message in refusal(capsys, "train", write(config | change))


def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    return {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}


def without_a_matrix(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if "gate_proj" not in name}


def of_more_layers(tensors: dict[str, Any]) -> dict[str, Any]:
    """As a config.json whose num_hidden_layers was lowered."""
    further = {name.replace(".0.", f".{n}."): weight.clone() for name, weight in tensors.items() for n in range(11)}
    return tensors | {name: weight for name, weight in further.items() if name not in tensors}


def narrower(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: weight[:-1].clone() if "gate_proj" in name else weight for name, weight in tensors.items()}


def with_tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = str(folder / "model.safetensors")
        save_file(change(load_file(weights)), weights, metadata={"format": "pt"})

    return damage


def cut_short(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-9])


def in_shards(folder: Path) -> None:
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink()


def shard_cut_short(folder: Path) -> None:
    in_shards(folder)
    cut_short(folder)


def shard_lost(folder: Path) -> None:
    in_shards(folder)
    max(folder.glob("*.safetensors")).unlink()


def index_lost(folder: Path) -> None:
    in_shards(folder)
    (folder / "model.safetensors.index.json").unlink()


GATE = "'model.layers.0.mlp.gate_proj.weight'"
CHECKPOINTS: list[tuple[Callable[[Path], None], str]] = [
    (with_tensors(renamed), "lacks the weights 'lm_head.weight' (12 of 12 are missing), which would be random; it h"),
    (with_tensors(renamed), "take '_orig_mod.' off the names"),
    (with_tensors(without_a_matrix), f"lacks the weights {GATE} (1 of 12 are missing), which would be random"),
    (with_tensors(of_more_layers), "holds 'model.layers.1.input_layernorm.weight', for which its configuration has no"),
    (with_tensors(of_more_layers), "(90 weights would be dropped): correct its config.json, or load the model that is"),
    (with_tensors(narrower), f"holds {GATE} of shape [31, 16], which its configuration says is [32, 16]"),
    (cut_short, "cannot be loaded: SafetensorError: Error while deserializing header"),
    (shard_cut_short, "cannot be loaded: SafetensorError: Error while deserializing header"),
    (shard_lost, "No such file or directory: "),
    (index_lost, "no file named model.safetensors, or pytorch_model.bin, found in directory "),
]


@pytest.mark.parametrize(("damage", "message"), CHECKPOINTS)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_checkpoint_of_other_weights_is_refused_wherever_it_is_loaded(
    role: str,
    damage: Callable[[Path], None],
    message: str,
    config: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By each command, and by the trainer in Python."""
    field = {"student": "model_name_or_path", "teacher": "teacher_model_name_or_path"}[role]
    shutil.copytree(config[field], "damaged")
    damage(Path("damaged"))
    judged = {"eval_verifier": "numeric", "eval_prompts": "prompts.jsonl", "eval_strategy": "steps", "eval_steps": 1}
    path = write(config | {field: "damaged"} | judged)
    commands = [["train", path], ["probe", path, "--output", "probe", "--limit", "4"]]
    if role == "student":
        commands.append(["eval", "damaged", "--prompts", "prompts.jsonl", "--verifier", "numeric", "--output", "out"])
    base = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    del base["output_dir"]
    runs = {"OPD": {"rollout_policy": "student"}, "TRB": {"rollout_policy": "trb"}}
    metric = {"name": "eval_pass@1", "better": "higher", "final_evaluations": 1}
    study: dict[str, Any] = {"title": "", "output_dir": "study", "reference": "OPD", "seeds": [1, 2], "metric": metric}
    Path("study.yaml").write_text(yaml.safe_dump(study | {"base": base, "runs": runs}), encoding="utf-8")
    commands.append(["compare", "study.yaml"])
    for command in commands:
        line = refusal(capsys, *command)
        assert "damaged" in line
        assert message in line, command
    models = {"student": config["model_name_or_path"], "teacher": config["teacher_model_name_or_path"]}
    args = TRBConfig("run", use_cpu=True)
    with pytest.raises((ValueError, OSError), match=f"damaged.*{re.escape(message)}|{re.escape(message)}.*damaged"):
        TRBTrainer(*(models | {role: "damaged"}).values(), args, train_dataset=prompts(8))


def test_a_run_does_not_go_on_with_other_weights(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = write(config, save_strategy="steps", save_steps=1, lr_scheduler_type="constant")
    assert main(["train", path]) == 0
    weights = "run/checkpoint-1/model.safetensors"
    save_file(renamed(load_file(weights)), weights, metadata={"format": "pt"})
    line = refusal(capsys, "train", path, "--resume", "--max_steps", "2")
    assert "checkpoint-1 cannot be resumed exactly: it lacks the weights 'lm_head.weight'" in line
    assert "take '_orig_mod.' off the names" in line


def test_the_trainer_refuses_objects_that_cannot_write_or_judge(models: dict[str, str], tmp_path: Path) -> None:
    class NoDraw(Policy):
        pass

    def make(**given: Any) -> TRBTrainer:
        args = TRBConfig(str(tmp_path / "run"), use_cpu=True)
        return TRBTrainer(models["student"], models["teacher"], args, train_dataset=prompts(8), **given)

    with pytest.raises(ValueError, match=r"the rollout policy NoDraw must define draw\(step, student_logits"):
        make(policy=NoDraw())
    with pytest.raises(ValueError, match=r"the verifier '<lambda>' must take \(prompt, completion, row\)"):
        make(verifier=lambda prompt, completion: True)


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


FILES: list[tuple[Callable[[Path], None] | None, dict[str, Any], str]] = [
    (no_tokenizer, {}, "student"),
    (broken_tokenizer, {}, "student"),
    (broken_config, {}, "student/config.json"),
    (None, {"model_init_kwargs": {"layers": 3}}, "got an unexpected keyword argument 'layers'"),
    (None, {"model_init_kwargs": {"dtype": "float99"}}, "got float99"),
    (None, {"teacher_model_init_kwargs": {"layers": 3}}, "got an unexpected keyword argument 'layers'"),
    (None, {"model_name_or_path": "nowhere"}, "nowhere"),
    (None, {"output_dir": "prompts.jsonl"}, "output_dir prompts.jsonl must be a folder, got a file"),
]


@pytest.mark.parametrize(("damage", "change", "message"), FILES)
def test_models_that_cannot_be_loaded_are_refused(
    damage: Callable[[Path], None] | None,
    change: dict[str, Any],
    message: str,
    config: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(config["model_name_or_path"], "student")
    if damage is not None:
        damage(Path("student"))
    assert message in refusal(capsys, "train", write(config | {"model_name_or_path": "student"} | change))


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_an_adapter_is_no_model_to_train_with(
    role: str, adapter: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    field = {"student": "model_name_or_path", "teacher": "teacher_model_name_or_path"}[role]
    line = refusal(capsys, "train", write(config | {field: adapter}))
    assert f"the {role} {adapter} is a PEFT adapter of {config['model_name_or_path']}, and training needs a" in line
    models = {"student": config["model_name_or_path"], "teacher": config["teacher_model_name_or_path"]}
    with pytest.raises(ValueError, match=f"the {role} {adapter} is a PEFT adapter of .*merge_and_unload"):
        TRBTrainer(*(models | {role: adapter}).values(), TRBConfig("run", use_cpu=True), train_dataset=prompts(8))


def test_an_adapter_is_merged_where_nothing_is_trained(
    adapter: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = torch.arange(3, 12)[None]
    expected = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()(tokens).logits
    assert torch.allclose(load_for_inference(adapter, "model", "cpu")(tokens).logits, expected, atol=1e-5)
    base = load_for_inference(config["model_name_or_path"], "model", "cpu")(tokens).logits
    assert not torch.allclose(base, expected, atol=1e-2)
    assert main(["eval", adapter, *EVAL]) == 0

    shutil.copytree(adapter, "damaged")
    weights = "damaged/adapter_model.safetensors"
    save_file({name: weight for name, weight in load_file(weights).items() if "lora_B" not in name}, weights)
    line = refusal(capsys, "eval", "damaged", *EVAL)
    assert (
        "the model damaged cannot be loaded: its adapter must hold 'base_model.model.model.layers.0.self_attn" in line
    )


@pytest.fixture
def adapter(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a LoRA adapter of the student, with a tokenizer beside it."""
    folder = str(tmp_path_factory.mktemp("adapter"))
    student = LlamaForCausalLM.from_pretrained(config["model_name_or_path"])
    lora = get_peft_model(student, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    lora.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


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
    """In Python: of what is trained on, and of what is held out."""
    bad, good = Dataset.from_list(rows), prompts(8)
    for train, held_out, name in ((bad, None, "train_dataset"), (good, {"a": good, "b": bad}, "eval_dataset b")):
        args = TRBConfig(str(tmp_path / "run"), use_cpu=True)
        with pytest.raises(ValueError, match=rf"{name}\b.*{re.escape(fault)}"):
            TRBTrainer(models["student"], models["teacher"], args, train, held_out)


def test_tied_weights_and_shared_tokens_are_no_loss(config: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_llama(3)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    path = saved(tmp_path / "tied", model, tiny_tokenizer())
    assert "lm_head.weight" not in load_file(f"{path}/model.safetensors")
    assert load_for_inference(path, "model", "cpu").lm_head.weight is not None


EVAL = ("--prompts", "prompts.jsonl", "--verifier", "numeric", "--limit", "2", "--max-completion-length", "4")
OTHERS = [
    (["plot", "run"], "run is not a run folder with metrics"),
    (["plot", "finished", "--output", "nowhere/plot.png"], "--output: there is no folder nowhere"),
    (["plot", "finished", "--output", "plot.gif"], "must end in .png or .svg"),
    (["eval", "{student}", "--prompts", "void.jsonl", "--verifier", "numeric"], "no such file of prompts: void.jsonl"),
    (["eval", "{student}", "--prompts", "prompts.jsonl", "--verifier", "nobody"], "a verifier is one of"),
    (
        ["eval", "{student}", "--prompts", "prompts.jsonl", "--verifier", "numeric", "--max-completion-length", "64"],
        "leaves no room for a prompt in the 64 positions of the model",
    ),
    (["eval"], "the following arguments are required: model (trb eval --help says more)"),
    (["eval", "{student}", "--limit", "few"], "argument --limit: must be a whole number of at least 1, got 'few'"),
    (["eval", "{student}", "--prompts", "prompts.jsonl"], "--verifier is required without --suite"),
    (["eval", "{student}", "--suite", "void.yaml"], "cannot read void.yaml: No such file or directory"),
    (["fly"], "invalid choice: 'fly'"),
    (["info", "--verbose"], "unrecognized arguments: --verbose"),
    (["demo", "--steps", "0"], "argument --steps: must be a whole number of at least 1, got '0'"),
    (["demo", "--epsilon", "-1"], "trb_epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got -1.0"),
    (["demo", "--draft_length", "few"], "draft_length must be 'auto', 0 for lockstep"),
    (["eval", "{student}", *EVAL, "--output", "."], "--output . must be a file, got a folder or a device"),
    (["eval", "{student}", *EVAL, "--output", "prompts.jsonl"], "exists and is not of this evaluation; name another"),
    (["eval", "{student}", "{student}", *EVAL], "several models need --suite"),
    (["train"], "model_name_or_path (the student) is not set"),
    (["train", "config.yaml", "more.yaml"], "unrecognized arguments: more.yaml"),
    (["demo", "--output", "prompts.jsonl"], "prompts.jsonl"),
    (["train", "void.yaml"], "cannot read void.yaml: No such file or directory"),
    (["train", "."], "cannot read .: Is a directory"),
    (["probe", "void.yaml"], "cannot read void.yaml"),
    (["compare", "void.yaml"], "cannot read void.yaml"),
]


@pytest.mark.parametrize(
    ("words", "message"), OTHERS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_other_commands_refuse_in_one_line(
    words: list[str], message: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(config)
    Path("finished").mkdir()
    Path("finished/metrics.jsonl").write_text('{"step": 1, "trb/reverse_kl": 0.5}\n', encoding="utf-8")
    words = [word.format(student=config["model_name_or_path"]) for word in words]
    assert message in refusal(capsys, *words)


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


def test_output_that_nobody_reads_or_that_cannot_be_written_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `trb train --fields | head -1` and `trb info > /dev/full`: the interpreter flushes once more at its end."""
    for words in (["train", "--fields"], ["info"]):
        reader, writer = os.pipe()
        os.close(reader)
        for target, code, said in ((writer, 0, ""), ("/dev/full", 1, "trb: cannot write to standard output: No space")):
            with open(target, "w", encoding="utf-8") as output, monkeypatch.context() as patch:
                patch.setattr(sys, "stdout", output)
                assert main(words) == code
                output.flush()
            err = capsys.readouterr().err
            assert err.startswith(said)
            assert err.count("\n") == bool(said)


def test_without_the_extra_the_commands_name_it_and_info_works() -> None:
    """As after a plain `pip install trbext`, which brings torch alone."""
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(OF_THE_EXTRA - {'numpy'})}, None))\n"  # torch looks for numpy
        "from trbext.cli import main\n"
        "for command in ('train a', 'eval a', 'compare a', 'probe a', 'demo', 'plot a'):\n"
        "    assert main(command.split()) == 2\n"
        "assert main(['info']) == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 6, lines
    assert all(re.fullmatch(r"trb: trb \w+ needs \w+, which is .* pip install 'trbext.*", line) for line in lines)


def test_the_extra_is_what_pyproject_says() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (block,) = re.findall(r"^train = \[(.*?)^\]", text, re.S | re.M)
    names = set(re.findall(r'"([a-z0-9-]+)', block))
    assert {"yaml" if name == "pyyaml" else name for name in names} == OF_THE_EXTRA


def test_every_text_file_is_opened_with_an_encoding() -> None:
    """Ruff's PLW1514 sees only what it knows to be a path."""
    bare = []
    for folder in ("trbext", "benchmarks", "build_support", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(call, ast.Call) and isinstance(call.func, (ast.Attribute, ast.Name)):
                    name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
                    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                    named = {keyword.arg for keyword in call.keywords}
                    binary = name == "open" and any("b" in mode for mode in modes)
                    binary |= ast.unparse(call.func) == "os.open"  # a descriptor
                    if name in ("open", "read_text", "write_text") and "encoding" not in named and not binary:
                        bare.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not bare
