"""Tests which answers the verifiers of numbers accept, in whatever form a number is written."""

from __future__ import annotations

from typing import Any

import pytest

from trbext.evaluation.verifiers import ANSWERS, numeric, verifier_by_name


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        (0.00001, "0.00001", True),
        (0.00001, "-5", False),
        (1.23e19, "19", False),
        (1.23e19, "12,300,000,000,000,000,000", True),
        ("1e-5", "It is 1E\u22125.", True),
        (-5, "x = \u22125", True),
        (5, "x = \u22125", False),
        ("#### \u2212 7", "7", True),  # a sign apart from its number is none
        (12, "1e9999999999999999999999 or 12", True),
        (3, "e3", True),
        (3, "3e", True),
    ],
)
def test_the_last_number_decides(answer: Any, completion: str, right: bool) -> None:
    assert numeric("", completion, {"answer": answer}) == right
    if right:
        of_completion = ANSWERS[numeric]
        assert of_completion(completion) == of_completion(str(answer))


def test_a_number_without_end_has_no_value_that_fails() -> None:
    assert ANSWERS[numeric]("1e99999999999") is not None
    assert not numeric("", "9.9e99999 1e99999999999", {"answer": 1})


def test_math_reads_a_float_as_the_number_it_is() -> None:
    pytest.importorskip("math_verify")
    math = verifier_by_name("math")
    for answer, completion in ((1e-05, "$0.00001$"), (1.5e19, "$15000000000000000000$")):
        assert math("", completion, {"answer": answer})
    assert not math("", "$-5$", {"answer": 1e-05})
