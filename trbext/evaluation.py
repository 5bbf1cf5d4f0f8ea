"""pass@k by sampling from the student alone, and the verifiers that judge its completions.

The paper (arXiv 2605.31159) reports pass@1 = c/n at temperature 1, with n samples of each prompt of which c are right.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import comb
from typing import TYPE_CHECKING, Any

import torch

from .encoding import Prompt, encode_prompts, left_padded
from .math_verifier import check_installed, math_answer
from .named_object import load_object
from .rollout import lockstep
from .signatures import check_verifier_signature
from .vocab import Alignment, align

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Verifier = Callable[[Prompt, str, Mapping[str, Any]], bool]  # (prompt, completion text, dataset row) -> is it right?

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?")


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k samples is right, from c right ones among n:
    1 - C(n-c, k) / C(n, k) (arXiv 2107.03374). ValueError unless 0 <= c <= n and 1 <= k <= n."""
    if not 0 <= c <= n:
        raise ValueError(f"c must be between 0 and n = {n}, got {c}")
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and n = {n}, got {k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


@dataclass(frozen=True)
class Evaluation:
    """Completions of a set of prompts, judged."""

    samples: int  # n, completions per prompt
    correct: list[int]  # c of each prompt
    completions: list[list[str]]  # n texts of each prompt
    verifier_errors: int  # completions counted as wrong because the verifier raised
    first_error: str | None  # what it raised first
    clipped: int  # completions cut by the length limit
    tokens: int  # generated, EOS included

    def pass_at(self, k: int) -> float:
        """Mean of `pass_at_k` over the prompts; NaN without prompts."""
        if not self.correct:
            return float("nan")
        return sum(pass_at_k(self.samples, c, k) for c in self.correct) / len(self.correct)


def evaluate_pass_at_1(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    verifier: Verifier,
    *,
    samples: int = 1,
    max_new_tokens: int = 512,
    batch_size: int = 32,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    alignment: Alignment | None = None,
    encode: Callable[[list[Prompt]], list[list[int]]] | None = None,
) -> Evaluation:
    """Sample `samples` completions of every row's "prompt" from the student alone and judge them.

    Args:
        rows: each holds "prompt" (text or messages) and whatever the verifier reads. pass@1 is `.pass_at(1)`.
        verifier: called as verifier(prompt, completion, row), the prompt as in the row, the completion decoded without
            special tokens; returns True or False (1 or 0). One that raises counts as wrong, is logged, and the
            evaluation goes on; whether it raised on everything is for the caller to see (`check_verified`).
        batch_size: completions decoded at a time.
        generator: equal seeds, rows and batch sizes give equal completions.
        alignment: the student's, where the caller has one (only its EOS ids and width matter here).
        encode: prompts to token ids; by default the tokenizer, through its chat template for messages.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    alignment = alignment or align(student, student, tokenizer, tokenizer)
    encode = encode or (lambda prompts: encode_prompts(tokenizer, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else alignment.stop
    texts: list[list[str]] = [[] for _ in rows]
    clipped = tokens = 0
    tasks = [index for index in range(len(rows)) for _ in range(samples)]
    for start in range(0, len(tasks), batch_size):
        batch = tasks[start : start + batch_size]
        input_ids, mask = left_padded(encode([rows[index]["prompt"] for index in batch]), pad, student.device)
        rollout = lockstep(
            student,
            None,
            input_ids,
            mask,
            epsilon=0.0,
            max_new_tokens=max_new_tokens,
            alignment=alignment,
            pad_token_id=pad,
            temperature=temperature,
            generator=generator,
        )
        clipped += int((~rollout.finished).sum())
        tokens += int(rollout.lengths.sum())
        for index, ids, kept in zip(batch, rollout.tokens, rollout.mask, strict=True):
            texts[index].append(str(tokenizer.decode(ids[kept], skip_special_tokens=True)))
    correct, errors, first_error = judge(rows, texts, verifier)
    return Evaluation(samples, correct, texts, errors, first_error, clipped, tokens)


def judge(
    rows: Sequence[Mapping[str, Any]], completions: Sequence[Sequence[str]], verifier: Verifier
) -> tuple[list[int], int, str | None]:
    """How many completions of each row are right, how often the verifier raised (which counts as wrong), and what it
    raised first."""
    correct, errors = [], 0
    first: tuple[Exception, str] | None = None
    for row, texts in zip(rows, completions, strict=True):
        right = 0
        for text in texts:
            try:
                right += _verdict(verifier(row["prompt"], text, row))
            except Exception as error:
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


def _verdict(value: Any) -> bool:
    """Whether a verifier accepts. TypeError for what is neither True nor False, such as None, "no" or a score of 0.5,
    whose truth nobody may have meant."""
    if isinstance(value, str) or not (value == 0 or value == 1):
        raise TypeError(f"a verifier must return True or False, got {value!r:.80}")
    return bool(value)


def check_verified(errors: int, completions: int, first_error: str | None) -> None:
    """ValueError if the verifier raised on every one of `completions`: 0 % would say nothing about the model."""
    if 0 < completions <= errors:
        raise ValueError(
            f"the verifier raised on all {completions} completions, at first {first_error}. It is called as "
            "verifier(prompt, completion, row) and must return True or False"
        )


def check_verifier(verifier: Verifier, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """ValueError if `verifier` raises on whatever completion of the first rows, as without the column it reads."""
    first: Exception | None = None
    for row in (rows[index] for index in range(min(3, len(rows)))):
        answer = row.get("answer", "")
        for completion in (str(answer), f"\\boxed{{{answer}}}", "0", ""):
            try:
                _verdict(verifier(row["prompt"], completion, row))
            except Exception as error:
                first = first or error
            else:
                return
    if first is not None:
        raise ValueError(
            f"the verifier {name!r} raises on every completion of the first prompts, at first {type(first).__name__}: "
            f"{first}. It is called as verifier(prompt, completion, row) and must return True or False"
        )


def numeric(prompt: Prompt, completion: str, row: Mapping[str, Any]) -> bool:
    """Whether the last number of the completion equals the last number of row["answer"], as exact decimals: "1,234.50"
    equals "1234.5". KeyError without an answer, ValueError for an answer without a number."""
    expected = _last_number(str(row["answer"]))
    if expected is None:
        raise ValueError(f"the column 'answer' must hold a number, got {row['answer']!r}")
    return _last_number(completion) == expected


def _last_number(text: str) -> Decimal | None:
    found = [match for match in _NUMBER.findall(text) if any(character.isdigit() for character in match)]
    return Decimal(found[-1].replace(",", "")) if found else None


def _demo(prompt: Prompt, completion: str, row: Mapping[str, Any]) -> bool:
    from .demo.task import is_correct

    if not isinstance(prompt, str):
        raise TypeError(f"the demo's prompts are plain text, got {type(prompt).__name__}")
    return is_correct(prompt, completion)


VERIFIERS: dict[str, Verifier] = {"numeric": numeric, "demo": _demo, "math": math_answer}


def verifier_by_name(name: str) -> Verifier:
    """The verifier called `name` in VERIFIERS, or "module:function". ValueError when there is none, it is not installed
    or does not take (prompt, completion, row)."""
    if name == "math":
        check_installed()
    if name in VERIFIERS:
        return VERIFIERS[name]
    if ":" not in name:
        raise ValueError(f"a verifier is one of {', '.join(VERIFIERS)} or 'module:function', got {name!r}")
    verifier = load_object("verifier", name)
    check_verifier_signature(name, verifier)
    return verifier
