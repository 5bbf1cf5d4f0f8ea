"""Holds what an engine wrote for the prompts of one process."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...rollout.output import Speculation
from ...vllm.client import EngineDraw
from ...vllm.sampler.teacher_top import TeacherTop


@dataclass(frozen=True)
class EngineTurn:
    """Completions of the prompts of one process, and their cost."""

    completion_ids: list[list[int]]
    draw: EngineDraw | None  # what is known of each token; None of an engine of only the student
    student_tokens: int  # positions that went through the engine's student, those of cached prefixes too
    teacher_tokens: int  # the same of its teacher
    seconds: float = 0.0  # of drawing
    sync_seconds: float = 0.0  # of sending the student's weights, before

    @classmethod
    def of_student(cls, prompts: Sequence[Sequence[int]], completion_ids: list[list[int]]) -> EngineTurn:
        """Returns the turn of an engine of only the student."""
        return cls(completion_ids, None, sum(map(len, [*prompts, *completion_ids])), 0)

    @classmethod
    def of_draw(cls, prompts: Sequence[Sequence[int]], draw: EngineDraw, draft_length: int) -> EngineTurn:
        """Returns the turn of an engine that holds the teacher.

        A pass of the teacher takes the last token of a row and its drafts. The student takes as many in its first pass
        of a round, and one in each further pass.
        """
        rollout = draw.rollout
        assert rollout.speculation is not None
        prompt_tokens, passes = sum(map(len, prompts)), rollout.speculation.row_passes
        return cls(
            [ids[kept].tolist() for ids, kept in zip(rollout.tokens, rollout.mask, strict=True)],
            draw,
            prompt_tokens + 2 * draft_length * passes,
            prompt_tokens + (draft_length + 1) * passes,
        )


def rows_of(draw: EngineDraw, first: int, rows: int, *, counted: bool) -> EngineDraw:
    """Returns the rollouts of one process out of those of all.

    Args:
        draw: Of all processes.
        first: Its first row.
        rows: How many it has, at least 1.
        counted: Whether what was counted of all rollouts goes to this process; to the others goes nothing.
    """
    rollout = draw.rollout
    longest = int(rollout.mask[first : first + rows].sum(1).max())

    def mine(tensor: Tensor) -> Tensor:
        part = tensor[first : first + rows]
        return part[:, :longest] if part.dim() > 1 else part

    none = Speculation(rounds=0, row_passes=0, drafted=0, accepted=0)
    return dataclasses.replace(
        draw,
        rollout=dataclasses.replace(
            rollout.with_each_tensor(mine), speculation=rollout.speculation if counted else none
        ),
        teacher_top=None if draw.teacher_top is None else TeacherTop(*map(mine, draw.teacher_top)),
        repaired=draw.repaired if counted else 0,
        preemptions=draw.preemptions if counted or draw.preemptions is None else 0,
    )
