"""Judges mathematical answers by math-verify (PyPI), as the paper does: equal values, however they are written."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


def check_installed() -> None:
    """Checks that math-verify is installed: inside an evaluation its absence would count as wrong answers.

    Raises:
        ValueError: It is not.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ValueError("the verifier 'math' needs math-verify: pip install 'trbext[math]'")


def math_answer(prompt: object, completion: str, row: Mapping[str, Any]) -> bool:
    r"""Returns whether the answer of a completion equals row["answer"].

    Args:
        prompt: Is not read.
        completion: Its answer is in \boxed{} or is its last expression.
        row: "answer" holds LaTeX or a number. Of a solution of GSM8K, what follows "####" is the answer. A list of
            answers (OlympiadBench) is one answer of several parts.

    Returns:
        Whether the two have the same value.

    Raises:
        KeyError: The row has no answer.
        ValueError: Its answer cannot be read.
    """
    from math_verify import parse, verify

    found = row["answer"]
    parts = found if isinstance(found, (list, tuple)) else [found]
    text = ", ".join(_written(part).rpartition("####")[2].strip().strip("$") for part in parts)
    gold = parse(f"\\boxed{{{text}}}")
    if not gold:
        raise ValueError(f"the column 'answer' must hold a mathematical expression, got {found!r}")
    return bool(verify(gold, parse(completion)))


def _written(part: object) -> str:
    """Writes a part of an answer; a float without an exponent, whose "e" would be read as a variable."""
    return format(Decimal(repr(part)), "f") if isinstance(part, float) else str(part)


def answered_expression(completion: str) -> str | None:
    """Returns the answer of a completion in one form; None if it has none.

    Equal values in forms that math-verify reads differently are two answers in a vote. That concerns wrong ones only,
    because all right ones have the value of the row's answer.
    """
    from math_verify import parse

    found = parse(completion)
    return str(found[0]) if found else None
