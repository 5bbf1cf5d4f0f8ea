"""Tests the verifier "math" with answers of the paper's benchmarks as their data sets write them."""

from __future__ import annotations

from typing import Any

import pytest

from trbext.evaluation import math_verifier
from trbext.evaluation.verifiers import judge, verifier_by_name


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("\\frac{1}{2}", "so it is \\boxed{0.5}", True),
        ("\\frac{1}{2}", "so it is \\boxed{\\dfrac12}", True),
        ("\\frac{1}{2}", "so it is \\boxed{0.55}", False),
        ("He has 3 + 4 = 7.\n#### 7", "The answer is \\boxed{7}.", True),
        ("He has 3 + 4 = 7.\n#### 7", "The answer is \\boxed{3}.", False),
        ("#### 1,234", "\\boxed{1234}", True),
        (["2", "3"], "\\boxed{2, 3}", True),
        (["$\\sqrt{3}$"], "\\boxed{\\sqrt{3}}", True),
        ("204", "\\boxed{204}", True),
        (204, "\\boxed{204}", True),
        ("204", "204 is what I had at first, but \\boxed{205}", False),
        ("204", "no answer at all", False),
        ("(3, \\frac{\\pi}{2})", "\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}", True),
    ],
)
def test_answers_are_equal_by_value(answer: Any, completion: str, right: bool) -> None:
    assert verifier_by_name("math")("?", completion, {"answer": answer}) is right


def test_an_answer_that_cannot_be_read_counts_as_wrong_and_is_told() -> None:
    rows = [{"prompt": "?", "answer": ""}, {"prompt": "?", "answer": "2"}]
    correct, errors, first = judge(rows, [["\\boxed{2}"], ["\\boxed{2}"]], verifier_by_name("math"))
    assert (correct, errors) == ([0, 1], 1)
    assert first == "ValueError: the column 'answer' must hold a mathematical expression, got ''"


def test_without_math_verify_the_verifier_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_verifier.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"the verifier 'math' needs math-verify: pip install 'trbext\[math\]'"):
        verifier_by_name("math")
