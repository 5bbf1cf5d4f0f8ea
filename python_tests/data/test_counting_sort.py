"""Tests the demonstration: its task is as described, and the shipped tokenizers and models are those that the build
made."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.countsort_models import BOS, EOS, MODELS, PAD, exact_match, generated_accuracy, solved, write_tokenizer
from trbext.data.counting_sort import (
    COMPLETION_TOKENS,
    MOST_PROMPTS,
    correct_completion,
    is_correct,
    prompts,
    prompts_dataset,
)

NAMES = ("teacher", "student")


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(name: str) -> Any:
    return AutoTokenizer.from_pretrained(MODELS / name)


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(MODELS / name).eval()


# ---------------------------------------------------------------------------------------------------------- the task
def test_the_completion_counts_every_digit_and_then_sorts_them() -> None:
    assert correct_completion("50311758=") == "01122031405260718190#01135578"
    assert correct_completion("99999999=") == "00102030405060708098#99999999"


def test_only_the_whole_trace_and_answer_are_correct() -> None:
    right = correct_completion("50311758=")
    assert is_correct("50311758=", right)
    wrong_count = "1" + right[1:]
    for completion in (wrong_count, right[:-1], right + "8", right + EOS, right.split("#")[1], "", right[:-1] + "7"):
        assert not is_correct("50311758=", completion), completion


@pytest.mark.parametrize("prompt", ["5031175=", "503117588=", "50311758", "5031175a=", "5031175²=", "50311758==", ""])
def test_a_malformed_prompt_is_refused_by_name(prompt: str) -> None:
    with pytest.raises(ValueError, match="a prompt is 8 digits") as error:
        correct_completion(prompt)
    assert repr(prompt) in str(error.value)


def test_prompts_depend_on_only_seed_and_split_and_never_repeat() -> None:
    assert prompts(2, 0) == ["42339970=", "53054621="]  # the shipped models were trained on this stream
    assert prompts(100, 3) == prompts(200, 3)[:100]
    assert prompts(100, 3) != prompts(100, 4)
    assert len(set(prompts(20_000, 5, "eval"))) == 20_000


def test_no_evaluation_prompt_is_a_training_prompt_for_any_seed() -> None:
    training = {prompt for seed in range(3) for prompt in prompts(20_000, seed)}
    evaluation = {prompt for seed in range(3) for prompt in prompts(20_000, seed, "eval")}
    assert not training & evaluation
    assert all(int(prompt[:-1]) % 97 for prompt in training)  # the reason that it holds for every other seed too
    assert not any(int(prompt[:-1]) % 97 for prompt in evaluation)


def test_impossible_requests_for_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match=f"n must be in 0..{MOST_PROMPTS}, got -1"):
        prompts(-1, 0)
    with pytest.raises(ValueError, match="got 1030928"):
        prompts(1_030_928, 0, "eval")
    with pytest.raises(ValueError, match="got 'test'"):
        prompts(1, 0, "test")  # type: ignore[arg-type]


def test_the_dataset_is_a_plain_text_prompt_column() -> None:
    assert prompts_dataset(2, 0) == [{"prompt": "42339970="}, {"prompt": "53054621="}]
    assert prompts_dataset(5, 1, "eval") == [{"prompt": prompt} for prompt in prompts(5, 1, "eval")]


# ----------------------------------------------------------------------------------------------------- the tokenizer
def test_a_prompt_is_bos_and_one_token_per_character(tokenizer: Any) -> None:
    assert tokenizer("50311758=")["input_ids"] == [1, 8, 3, 6, 4, 4, 10, 8, 11, 13]
    assert set(tokenizer("50311758=")) == {"input_ids", "attention_mask"}  # no token_type_ids: models refuse them


def test_decoding_returns_the_text_without_spaces(tokenizer: Any) -> None:
    prompt = "50311758="
    text = prompt + correct_completion(prompt)
    ids = tokenizer(text + EOS + PAD)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode(ids) == BOS + text + EOS + PAD
    assert len(tokenizer(correct_completion(prompt) + EOS, add_special_tokens=False)["input_ids"]) == COMPLETION_TOKENS


def test_prompts_are_padded_on_the_left_with_pad(tokenizer: Any) -> None:
    padded = tokenizer(["12=", "1="], padding=True)
    assert padded["input_ids"] == [[1, 4, 5, 13], [0, 1, 4, 13]]
    assert padded["attention_mask"] == [[1, 1, 1, 1], [0, 1, 1, 1]]


def test_a_character_outside_the_vocabulary_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="WordLevel error"):
        tokenizer("1+2=")


def test_the_shipped_tokenizers_are_the_ones_the_build_writes(name: str, tmp_path: Any) -> None:
    write_tokenizer(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        written, shipped = (json.loads((folder / file).read_text()) for folder in (tmp_path, MODELS / name))
        assert written == shipped


# --------------------------------------------------------------------------------------------------------- the models
def test_the_shipped_models_together_stay_below_a_megabyte() -> None:
    files = [file for file in MODELS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 1_000_000
    assert {file.name for file in files if file.suffix not in (".json", ".safetensors")} == set()


def test_the_shipped_weights_are_those_of_provenance(name: str) -> None:
    provenance = json.loads((MODELS / "provenance.json").read_text())["models"][name]
    assert hashlib.sha256((MODELS / name / "model.safetensors").read_bytes()).hexdigest() == provenance["sha256"]


def test_models_load_in_float32_and_know_their_special_tokens(name: str, model: Any, tokenizer: Any) -> None:
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer) == 15
    for settings in (model.config, model.generation_config, tokenizer):
        assert (settings.pad_token_id, settings.bos_token_id, settings.eos_token_id) == (0, 1, 2)
    provenance = json.loads((MODELS / "provenance.json").read_text())["models"][name]
    assert model.num_parameters() == provenance["parameters"]


def test_teacher_solves_the_task_and_student_seldom_does(name: str, model: Any, tokenizer: Any) -> None:
    accuracy = generated_accuracy(model, tokenizer, prompts(64, 7, "eval"))
    if name == "teacher":
        assert accuracy >= 0.85
    else:
        assert 0.02 <= accuracy <= 0.3


def test_one_forward_pass_measures_what_greedy_generation_does(model: Any, tokenizer: Any) -> None:
    questions = prompts(64, 8, "eval")
    assert exact_match(model, solved(tokenizer, questions)) == generated_accuracy(model, tokenizer, questions)


def test_teacher_sampled_at_temperature_one_solves_most_prompts() -> None:
    teacher, tokenizer = (
        AutoModelForCausalLM.from_pretrained(MODELS / "teacher"),
        AutoTokenizer.from_pretrained(MODELS / "teacher"),
    )
    torch.manual_seed(0)
    assert generated_accuracy(teacher, tokenizer, prompts(64, 9, "eval"), sample=True) >= 0.8
