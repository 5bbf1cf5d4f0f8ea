"""Puts what is known of a completion's tokens into the fields of verl's answers, and takes it out again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..vllm.sampler.teacher_top import TeacherTop
from .rollouts import Drawn
from .teacher_rows import rows_of_completion

FIELD = "trb"  # of extra_fields
IDS, LOG_PROBS = "teacher_ids", "teacher_logprobs"  # verl's names
VALUES = ("beta", "kl", "student_log_prob", "teacher_log_prob")


@dataclass(frozen=True)
class TokenFacts:
    """What was computed of the T tokens of one completion when they were drawn."""

    epsilon: float  # nats per token
    tokens: list[int]
    values: NDArray[np.float32]  # [4, T], in the order of `VALUES`
    repaired: int


def log_probs_of(drawn: Drawn) -> list[float]:
    """Returns the log-probabilities of a completion's tokens under mu."""
    return [float(value) for value in drawn.rollout.log_prob[0].tolist()]


def extra_fields_of(drawn: Drawn, prompt: Sequence[int], epsilon: float) -> dict[str, Any]:
    """Returns the `extra_fields` of an answer.

    Args:
        drawn: The completion.
        prompt: Its prompt.
        epsilon: Its budget.

    Returns:
        `trb`, the `TokenFacts` as a mapping, which is what verl makes of any dataclass on its way; and `teacher_ids`
        and `teacher_logprobs` [P + T, K + 1] if the engine records them.
    """
    rollout = drawn.rollout
    assert rollout.teacher_log_prob is not None
    parts = (rollout.beta, rollout.kl, rollout.student_log_prob, rollout.teacher_log_prob)
    facts = TokenFacts(epsilon, drawn.tokens, np.stack([part[0].numpy() for part in parts]), drawn.repaired)
    fields: dict[str, Any] = {FIELD: vars(facts)}
    if drawn.teacher_top is None:
        return fields
    ids, log_probs = rows_of_completion(TeacherTop(*(part[0] for part in drawn.teacher_top)), len(prompt))
    return {**fields, IDS: ids, LOG_PROBS: log_probs}


def facts_of(extra_fields: dict[str, Any]) -> TokenFacts:
    """Returns what `extra_fields_of` put into the fields of an answer."""
    return TokenFacts(**extra_fields[FIELD])


def check_whole(extra_fields: dict[str, Any], prompt: Sequence[int], response: Sequence[int]) -> TokenFacts:
    """Checks that an agent loop made its completion of one answer, and left it as it was.

    Args:
        extra_fields: Of the agent loop's output.
        prompt: Its prompt.
        response: Its completion.

    Returns:
        What is known of the completion's tokens.

    Raises:
        ValueError: It did not.
    """
    facts = facts_of(extra_fields) if FIELD in extra_fields else None
    if facts is None or facts.tokens != list(response):
        said = "none" if facts is None else f"{len(facts.tokens)} tokens of its last turn"
        raise ValueError(
            f"TRB needs agent loops of one turn, such as single_turn_agent: of a completion of {len(response)} tokens "
            f"the rollout knows {said}"
        )
    rows = extra_fields.get(IDS)
    if rows is not None and len(rows) != len(prompt) + len(response):
        raise ValueError(f"the teacher's rows must be {len(prompt) + len(response)} like the tokens, got {len(rows)}")
    return facts
