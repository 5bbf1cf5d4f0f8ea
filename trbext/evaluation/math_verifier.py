"""Mathematical answers judged by math-verify (PyPI), which the paper evaluates with: equal values, however written."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any


def check_installed() -> None:
    """ValueError without math-verify: inside an evaluation its absence would count as wrong answers."""
    if importlib.util.find_spec("math_verify") is None:
        raise ValueError("the verifier 'math' needs math-verify: pip install 'trbext[math]'")


def math_answer(prompt: object, completion: str, row: Mapping[str, Any]) -> bool:
    r"""Whether the completion's answer, in \boxed{} or the last expression, equals row["answer"].

    The answer is LaTeX or a number; of GSM8K's solutions what follows "####"; a list of answers (OlympiadBench) is one
    answer of several parts. KeyError without an answer, ValueError for one that cannot be read.
    """
    from math_verify import parse, verify

    found = row["answer"]
    parts = found if isinstance(found, (list, tuple)) else [found]
    text = ", ".join(str(part).rpartition("####")[2].strip().strip("$") for part in parts)
    gold = parse(f"\\boxed{{{text}}}")
    if not gold:
        raise ValueError(f"the column 'answer' must hold a mathematical expression, got {found!r}")
    return bool(verify(gold, parse(completion)))
