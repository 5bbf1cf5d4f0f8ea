"""Collects the rollouts of one generation: what is decoded for one optimizer step or one evaluation batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rollout import Rollout
from ..vllm.client import EngineDraw

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .engine.turn import EngineTurn


@dataclass
class Generation:
    """The rollouts of this process so far, over the turns of the conversations and the parts of the batch.

    There is one turn unless tools are called, and one part unless `rollout_batch_size` divides the batch.
    """

    rollouts: list[Rollout] = field(default_factory=list)  # one per turn and part, in order
    draws: list[EngineDraw] = field(default_factory=list)  # of them, those of an engine with the teacher
    turns: int = 0  # finished ones
    tokens: int = 0  # generated in them
    seconds: float = 0.0  # of decoding them
    sync_seconds: float = 0.0  # of sending the student's weights to an engine

    def end_turn(self, completion_ids: Sequence[Sequence[int]], seconds: float) -> None:
        """Counts a turn that wrote `completion_ids` in so many seconds."""
        self.turns += 1
        self.tokens += sum(map(len, completion_ids))
        self.seconds += seconds

    def add_turn(self, turn: EngineTurn, device: torch.device) -> None:
        """Adds what an engine wrote, its rollouts moved to `device`."""
        self.sync_seconds += turn.sync_seconds
        if turn.draw is not None:
            self.rollouts.append(turn.draw.rollout.to(device))
            self.draws.append(turn.draw)

    def place(self, part: int) -> tuple[int, ...]:
        """The place of a part of the current turn, from which its random numbers follow."""
        return (self.turns, part) if part else (self.turns,)  # undivided batches keep the numbers they always had

    def tokens_per_second(self, accelerator: Accelerator) -> float:
        """Generated tokens of all processes per second of the slowest one, for which the others wait.

        Every process calls it.
        """
        mine = torch.tensor([[self.tokens, self.seconds]], dtype=torch.float32, device=accelerator.device)
        counts, times = accelerator.gather(mine).T
        return float(counts.sum() / times.max())

    def accepted(self, completion_ids: Tensor) -> Tensor:
        """The labels of the tokens: which are accepted drafts of the student.

        Args:
            completion_ids: [B, C], the completions of the batch, in the order of the rollouts.

        Returns:
            [B, C] bool; True for tokens that no rollout holds.
        """
        labels = torch.ones(completion_ids.shape, dtype=torch.bool, device=completion_ids.device)
        row = 0
        for rollout in self.rollouts:
            rows, length = rollout.tokens.shape
            labels[row : row + rows, :length] = ~rollout.replaced
            row += rows
        return labels

    def log_weights(self, completion_ids: Tensor) -> Tensor:
        """log pi_S - log mu of each token when it was drawn.

        Args:
            completion_ids: [B, C], the completions of the batch, in the order of the rollouts.

        Returns:
            [B, C] float32, nats; 0 for tokens that no rollout holds.
        """
        weights = torch.zeros(completion_ids.shape, device=completion_ids.device)
        row = 0
        for rollout in self.rollouts:
            rows, length = rollout.tokens.shape
            weights[row : row + rows, :length] = rollout.student_log_prob - rollout.log_prob
            row += rows
        return weights

    def teacher_top(self, completion_ids: Tensor) -> dict[str, Tensor]:
        """Returns what an engine says of the teacher at each prefix of one turn.

        Args:
            completion_ids: [B, C], the completions of the batch, in the order of the rollouts.

        Returns:
            By the names of a batch: "top_ids" and "top_log_prob" [B, C, k], "rest_log_prob" and "teacher_log_prob" (of
            the completions' tokens) [B, C]; 0 past the end of a rollout.
        """
        (draw,), (rollout,) = self.draws, self.rollouts
        assert draw.teacher_top is not None
        assert rollout.teacher_log_prob is not None
        padding = completion_ids.shape[1] - rollout.tokens.shape[1]
        ids, log_prob, rest = (part.to(completion_ids.device) for part in draw.teacher_top)
        return {
            "top_ids": F.pad(ids, (0, 0, 0, padding)),
            "top_log_prob": F.pad(log_prob, (0, 0, 0, padding)),
            "rest_log_prob": F.pad(rest, (0, padding)),
            "teacher_log_prob": F.pad(rollout.teacher_log_prob, (0, padding)),
        }

    @property
    def teacher_state_bytes(self) -> int:
        """The memory that the teacher's states take on this process."""
        return sum(states.untyped_storage().nbytes() for states in self._teacher_states)

    @property
    def _teacher_states(self) -> list[Tensor]:
        return [rollout.teacher_states for rollout in self.rollouts if rollout.teacher_states is not None]

    def take_teacher_states(self, completion_ids: Tensor, accelerator: Accelerator) -> Tensor | None:
        """Moves the teacher's states out of the rollouts. Every process calls it.

        Args:
            completion_ids: [B, T], the completions of the batch.
            accelerator: Of the run.

        Returns:
            [B, T, H]; None unless every process has the states of all its completions. A process that calls the teacher
            again needs the others with it if the teacher is sharded.
        """
        rows, tokens = completion_ids.shape
        parts = self._teacher_states
        # More rows than completions: conversations of several turns, whose tokens are not those of one rollout.
        decoded = sum(len(rollout.tokens) for rollout in self.rollouts)
        complete = len(parts) == len(self.rollouts) and decoded == rows
        flag = torch.tensor([int(complete)], device=accelerator.device)
        joined = None
        if int(accelerator.gather(flag).min()) == 1:
            joined = torch.cat([F.pad(part, (0, 0, 0, tokens - part.shape[1])) for part in parts])
        self.rollouts = [dataclasses.replace(rollout, teacher_states=None) for rollout in self.rollouts]
        return joined
