"""Tests pass@k and the verifiers."""

from __future__ import annotations

import itertools
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.models.tiny_models import END_OF_TURN, EOS, prompts, tiny_llama, tiny_tokenizer
from trbext.data.encoding import encode_prompts, left_padded
from trbext.evaluation.own_decoder import OwnDecoder
from trbext.evaluation.pass_at_k import Evaluation, evaluate_pass_at_1, pass_at_k
from trbext.evaluation.verifiers import check_verifier, check_verifier_signature, judge, numeric, verifier_by_name


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample() -> None:
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="must be between"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("so 3 + 4 = 7", "7", True),
        ("so 3 + 4 = 7.", 7, True),
        ("7, no: 8", "7", False),
        ("it costs $1,234.50", "1234.5", True),
        ("1,2,3", 3, True),
        ("minus -5", -5, True),
        ("5", "-5", False),
        (".5 litres", "0.50", True),
        ("0.1", "0.10000000000000000001", False),
        ("reasoning ... #### 42", "Because. #### 42", True),
        ("no number", "7", False),
        ("", "7", False),
        ("1234567 1,234,567", "1234567", True),
    ],
)
def test_numeric_compares_the_last_numbers_exactly(completion: str, answer: Any, right: bool) -> None:
    assert numeric("prompt", completion, {"answer": answer}) is right


def test_numeric_refuses_rows_without_a_number() -> None:
    with pytest.raises(KeyError):
        numeric("prompt", "7", {})
    with pytest.raises(ValueError, match="must hold a number, got 'seven'"):
        numeric("prompt", "7", {"answer": "seven"})


def shouts(prompt: Any, completion: str, row: Mapping[str, Any]) -> bool:
    return completion.isupper()


def test_verifiers_are_found_by_name() -> None:
    assert verifier_by_name("numeric") is numeric
    assert verifier_by_name("operator:setitem").__name__ == "setitem"
    demo = verifier_by_name("demo")
    right = "01122031405260718190#01135578"
    assert demo("50311758=", right, {}) is True
    assert demo("50311758=", right[:-1], {}) is False


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mathematics", "one of numeric, demo, math or 'module:function', got 'mathematics'"),
        ("nowhere_at_all:f", "'nowhere_at_all:f' could not be imported: No module named"),
        ("operator:nothing", "'operator:nothing' could not be imported: .*nothing"),
        ("math:pi", "'math:pi' must be callable, got float"),
    ],
)
def test_an_unknown_verifier_is_named(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        verifier_by_name(name)


def test_a_verifier_that_exits_is_refused_before_anything_is_sampled() -> None:
    def exits(prompt: Any, completion: str, row: Mapping[str, Any]) -> bool:
        sys.exit(0)

    with pytest.raises(ValueError, match=r"'mine:exits' raises on every .* the verifier called sys\.exit\(0\)"):
        check_verifier(exits, list(prompts(2)), "mine:exits")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def evaluated(
    student: Any,
    tokenizer: Any,
    rows: list[Any],
    verifier: Any,
    *,
    batch_size: int = 32,
    seed: int = 0,
    **settings: Any,
) -> Evaluation:
    """Evaluates a student by our own decoder."""
    decoder = OwnDecoder(student, tokenizer, batch_size=batch_size, generator=generator(seed))
    prompt_ids = encode_prompts(tokenizer, [row["prompt"] for row in rows]) if rows else []
    return evaluate_pass_at_1(decoder, rows, prompt_ids, verifier, **settings)


def test_pass_at_1_counts_what_the_verifier_accepts() -> None:
    rows = list(prompts(5))
    seen = []

    def first_is_a_letter(prompt: Any, completion: str, row: Mapping[str, Any]) -> bool:
        seen.append((prompt, row["answer"]))
        return completion[:1].isalpha()

    found = evaluated(
        tiny_llama(),
        tiny_tokenizer(),
        rows,
        first_is_a_letter,
        samples=6,
        max_new_tokens=5,
        batch_size=4,
    )
    counts = [sum(text[:1].isalpha() for text in texts) for texts in found.completions]
    assert found.correct == counts
    assert 0 < sum(counts) < 30
    assert found.pass_at(1) == pytest.approx(sum(counts) / 30)
    assert found.pass_at(6) == sum(count > 0 for count in counts) / 5
    assert [len(texts) for texts in found.completions] == [6] * 5
    assert seen == [(row["prompt"], row["answer"]) for row in rows for _ in range(6)]
    assert max(len(text) for texts in found.completions for text in texts) <= 5


def test_equal_seeds_give_equal_completions_and_others_do_not() -> None:
    def completions(seed: int) -> list[list[str]]:
        return evaluated(
            tiny_llama(), tiny_tokenizer(), list(prompts(3)), shouts, max_new_tokens=8, seed=seed
        ).completions

    assert completions(1) == completions(1)
    assert completions(1) != completions(2)


def test_completions_follow_the_students_distribution() -> None:
    student, tokenizer = tiny_llama(sharpness=0.6), tiny_tokenizer()
    row = {"prompt": "1+1="}
    n = 4000
    found = evaluated(student, tokenizer, [row], shouts, samples=n, max_new_tokens=1, batch_size=n)
    with torch.no_grad():
        probability = student(torch.tensor([tokenizer("1+1=")["input_ids"]])).logits[0, -1].double().softmax(-1)
    counts = torch.zeros(64, dtype=torch.float64)
    for text in found.completions[0]:
        counts[tokenizer.convert_tokens_to_ids(text) if text else EOS] += 1  # special tokens decode to nothing
    ordinary = torch.arange(64) > 3
    deviation = (counts - n * probability)[ordinary] / (n * probability * (1 - probability)).sqrt()[ordinary]
    assert deviation.abs().max() < 4.5


def test_every_eos_id_of_the_student_ends_a_completion() -> None:
    student = tiny_llama(eos=[EOS, END_OF_TURN])
    torch.nn.init.zeros_(student.lm_head.weight)
    rows = list(prompts(64))
    found = evaluated(student, tiny_tokenizer(), rows, shouts, max_new_tokens=40)
    # A uniform student stops with probability 2/64 per token: the chance to pass 40 tokens is (62/64)^40 = 0.28.
    assert 0.1 < found.clipped / 64 < 0.5


def test_prompts_are_padded_on_the_left() -> None:
    ids, mask = left_padded([[5, 6, 7], [8], [9, 10]], 0, "cpu")
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8], [0, 9, 10]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]


def test_a_raising_verifier_counts_as_wrong_is_logged_and_does_not_end_the_evaluation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def picky(prompt: Any, completion: str, row: Mapping[str, Any]) -> bool:
        if row["prompt"].startswith("4"):
            raise RuntimeError("cannot parse this one")
        return True

    with caplog.at_level(logging.WARNING):
        found = evaluated(tiny_llama(), tiny_tokenizer(), list(prompts(3)), picky, samples=2, max_new_tokens=3)
    assert found.correct == [2, 0, 2]
    assert found.verifier_errors == 2
    assert "cannot parse this one" in caplog.text
    assert "2 of 6 completions" in caplog.text
    assert len(caplog.records) == 1


def test_no_rows_give_nan_rather_than_zero() -> None:
    found = evaluated(tiny_llama(), tiny_tokenizer(), [], shouts)
    assert found.pass_at(1) != found.pass_at(1)


@pytest.mark.parametrize("field", ["samples", "batch_size"])
def test_refuses_nothing_to_sample(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        evaluated(tiny_llama(), tiny_tokenizer(), [], shouts, **{field: 0})


def test_messages_go_through_the_chat_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if add_generation_prompt %}={% endif %}"
    plain, chat = [{"prompt": "1+1="}], [{"prompt": [{"role": "user", "content": "1+1"}]}]
    texts = [evaluated(tiny_llama(), tokenizer, rows, shouts, max_new_tokens=8).completions for rows in (plain, chat)]
    assert texts[0] == texts[1]


def test_the_verifier_of_the_docs_is_one() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    scope: dict[str, Any] = {}
    exec(code, scope)
    check_verifier_signature("verifier", scope["verifier"])
    assert judge([{"prompt": "?", "answer": "2"}], [[" 2\n", "3"]], scope["verifier"]) == ([1], 0, None)
