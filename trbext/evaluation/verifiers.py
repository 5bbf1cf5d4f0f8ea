"""Judges whether completions are right, by a built-in verifier or one of the user's, and checks verifiers."""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..data.encoding import Prompt
from ..errors import VerifierFailed
from ..user_objects import check_takes, load_object
from .math_verifier import answered_expression, check_installed, math_answer

logger = logging.getLogger(__name__)


Verifier = Callable[[Prompt, str, Mapping[str, Any]], bool]  # (prompt, completion text, dataset row) -> is it right?


# U+2212 is the minus sign of typeset text. Decimal computes with an exponent of five digits at most.
_NUMBER = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:(?<=\d)[eE][-+\u2212]?\d{1,5}(?!\d))?")


def judge(
    rows: Sequence[Mapping[str, Any]], completions: Sequence[Sequence[str]], verifier: Verifier
) -> tuple[list[int], int, str | None]:
    """Lets a verifier judge completions. A completion on which it raises counts as wrong, and is logged.

    Args:
        rows: The prompts' rows.
        completions: The texts of each row.
        verifier: Is called as verifier(prompt, completion, row).

    Returns:
        The number of right completions of each row, the number of errors of the verifier, and the first error.
    """
    correct, errors = [], 0
    first: tuple[Exception, str] | None = None
    for row, texts in zip(rows, completions, strict=True):
        right = 0
        for text in texts:
            is_right, error = judge_one(row, text, verifier)
            right += is_right
            if error is not None:
                first = first or (error, text)
                errors += 1
        correct.append(right)
    if first is None:
        return correct, errors, None
    logger.warning(
        "the verifier raised on %d of %d completions, which count as wrong; the first was %.200r",
        errors,
        sum(map(len, completions)),
        first[1],
        exc_info=first[0],
    )
    return correct, errors, f"{type(first[0]).__name__}: {first[0]}"


def judge_one(row: Mapping[str, Any], completion: str, verifier: Verifier) -> tuple[bool, Exception | None]:
    """Lets a verifier judge one completion.

    Args:
        row: The prompt's row.
        completion: Its text.
        verifier: Is called as verifier(prompt, completion, row).

    Returns:
        Whether it is right, and what the verifier raised; if it raised, the completion is wrong.
    """
    try:
        return _judgment(verifier(row["prompt"], completion, row)), None
    except Exception as error:
        return False, error
    except SystemExit as error:  # of a verifier that calls sys.exit: no reason to end the run
        return False, RuntimeError(f"the verifier called sys.exit({error.code!r})")


def _judgment(value: Any) -> bool:
    """Returns whether a verifier accepts.

    TypeError for what is neither True nor False, such as None, "no" or a score of 0.5: Python would make a truth of it
    that nobody meant.
    """
    if isinstance(value, str) or not (value == 0 or value == 1):
        raise TypeError(f"a verifier must return True or False, got {value!r:.80}")
    return bool(value)


def check_verified(errors: int, completions: int, first_error: str | None) -> None:
    """Checks that the verifier judged a completion: if it always raised, 0 % says nothing about the model.

    Args:
        errors: Completions on which it raised.
        completions: All of them.
        first_error: The first error, for the message.

    Raises:
        VerifierFailed: (a ValueError) it raised on every completion.
    """
    if 0 < completions <= errors:
        raise VerifierFailed(
            f"the verifier raised on all {completions} completions, at first {first_error}. It is called as "
            "verifier(prompt, completion, row) and must return True or False"
        )


def check_verifier(verifier: Verifier, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Checks that a verifier judges a completion of the first rows, before anything is sampled.

    Args:
        verifier: The verifier.
        rows: The prompts' rows.
        name: The verifier's, for the message.

    Raises:
        ValueError: It raises on every completion that was tried, for example since the column it reads is missing.
    """
    first: Exception | None = None
    for row in (rows[index] for index in range(min(3, len(rows)))):
        answer = row.get("answer", "")
        for completion in (str(answer), f"\\boxed{{{answer}}}", "0", ""):
            _, error = judge_one(row, completion, verifier)
            if error is None:
                return
            first = first or error
    if first is not None:
        raise ValueError(
            f"the verifier {name!r} raises on every completion of the first prompts, at first {type(first).__name__}: "
            f"{first}. It is called as verifier(prompt, completion, row) and must return True or False"
        )


def numeric(prompt: Prompt, completion: str, row: Mapping[str, Any]) -> bool:
    """Returns whether the last number of the completion equals the last number of row["answer"].

    Numbers are compared as exact decimals: "1,234.50" equals "1234.5", and "1e-5" equals "0.00001".

    Raises:
        KeyError: The row has no answer.
        ValueError: Its answer has no number.
    """
    expected = _last_number(str(row["answer"]))
    if expected is None:
        raise ValueError(f"the column 'answer' must hold a number, got {row['answer']!r}")
    return _last_number(completion) == expected


def _last_number(text: str) -> Decimal | None:
    found = [match for match in _NUMBER.findall(text) if any(character.isdigit() for character in match)]
    return Decimal(found[-1].replace(",", "").replace("\u2212", "-")) if found else None


def _demo(prompt: Prompt, completion: str, row: Mapping[str, Any]) -> bool:
    from ..data.counting_sort import is_correct

    if not isinstance(prompt, str):
        raise TypeError(f"the demo's prompts are plain text, got {type(prompt).__name__}")
    return is_correct(prompt, completion)


def _answered_number(completion: str) -> str | None:
    found = _last_number(completion)
    return None if found is None else str(found.normalize())


def _answered_after_sign(completion: str) -> str | None:
    return completion.rpartition("#")[2] if "#" in completion else None


VERIFIERS: dict[str, Verifier] = {"numeric": numeric, "demo": _demo, "math": math_answer}
# What a completion answers, as a text that is equal for equal answers, for the majority vote; None: nothing.
ANSWERS: dict[Verifier, Callable[[str], str | None]] = {
    numeric: _answered_number,
    _demo: _answered_after_sign,
    math_answer: answered_expression,
}


def answers_of(verifier: Verifier) -> Callable[[str], str | None] | None:
    """Returns what tells the answer of a completion, for the majority vote.

    Args:
        verifier: A built-in one, or a function with an attribute `answer`, a function of a completion's text.

    Returns:
        A function of a completion's text to a text that is equal for equal answers, or None if there is no answer; None
        if the verifier has none.
    """
    found: Callable[[str], str | None] | None = ANSWERS.get(verifier) or getattr(verifier, "answer", None)
    return found


def verifier_digest(verifier: Verifier) -> str | None:
    """Returns a digest of the file that defines a verifier, by which one sees that the verifier may have changed.

    Args:
        verifier: A function, or an object that can be called.

    Returns:
        16 hexadecimal digits; None if there is no file, such as for a function written in C.
    """
    defined: Any = inspect.unwrap(verifier.func if isinstance(verifier, functools.partial) else verifier)
    try:
        file = inspect.getsourcefile(defined if inspect.isroutine(defined) else type(defined))
        return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    except (TypeError, OSError):  # TypeError: it is built into Python
        return None


def verifier_by_name(name: str) -> Verifier:
    """Returns a verifier.

    Args:
        name: One of VERIFIERS, or "module:function".

    Returns:
        The verifier.

    Raises:
        ValueError: There is none, it is not installed, or it does not take (prompt, completion, row).
    """
    if name == "math":
        check_installed()
    if name in VERIFIERS:
        return VERIFIERS[name]
    if ":" not in name:
        raise ValueError(f"a verifier is one of {', '.join(VERIFIERS)} or 'module:function', got {name!r}")
    verifier = load_object("verifier", name)
    check_verifier_signature(name, verifier)
    return verifier


VERIFIER = ("prompt", "completion", "row")


def check_verifier_signature(name: str, verifier: Callable[..., Any]) -> None:
    """Checks that a verifier is a function of (prompt, completion, row) that returns its judgment.

    Raises:
        ValueError: It is not.
    """
    if isinstance(verifier, type):
        raise ValueError(f"the verifier {name!r} must be a function, got the class {verifier.__name__}")
    if inspect.iscoroutinefunction(verifier) or inspect.isgeneratorfunction(verifier):
        raise ValueError(f"the verifier {name!r} must be a plain function that returns True or False, not async")
    check_takes(f"the verifier {name!r}", verifier, VERIFIER)
