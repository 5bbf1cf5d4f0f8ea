"""What a trainer keeps of speculative rollouts: the draft length's costs over steps and checkpoints, and the
metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import broadcast_object_list

from .rollout import DraftLength, Rollout

if TYPE_CHECKING:
    from accelerate import Accelerator

COSTS = "draft_length.json"  # in a checkpoint


class Drafting:
    """The draft length of a run: a fixed one, or one whose costs are measured in the run's first blended step.

    The main process's costs then hold for all processes and all later steps, and go into every checkpoint: a resumed
    run chooses as the run that was not interrupted, and repeats it exactly.
    """

    def __init__(self, draft_length: str | int) -> None:
        self.draft_length: int | DraftLength = DraftLength() if draft_length == "auto" else int(draft_length)

    def end_step(self) -> None:
        """After the rollouts of a step with a budget. Every process calls it."""
        if not isinstance(self.draft_length, DraftLength) or self.draft_length.frozen:
            return
        costs = [self.draft_length.state()]
        broadcast_object_list(costs)
        self.draft_length.load_state(costs[0])
        self.draft_length.freeze()

    def save(self, checkpoint: Path) -> None:
        if isinstance(self.draft_length, DraftLength) and self.draft_length.frozen:
            (checkpoint / COSTS).write_text(json.dumps(self.draft_length.state()))

    def load(self, checkpoint: Path) -> None:
        if isinstance(self.draft_length, DraftLength) and (checkpoint / COSTS).is_file():
            self.draft_length.load_state(json.loads((checkpoint / COSTS).read_text()))


def drafting_metrics(rollouts: Sequence[Rollout], accelerator: Accelerator) -> dict[str, float]:
    """Acceptance and tokens per teacher pass of the blended rollouts of a step, and the teacher states kept, GiB of the
    largest process. Every process calls it."""
    parts = [rollout.speculation for rollout in rollouts if rollout.speculation is not None]
    tokens = sum(int(rollout.mask.sum()) for rollout in rollouts if rollout.speculation is not None)
    states = [rollout.teacher_states for rollout in rollouts if rollout.teacher_states is not None]
    mine = (
        sum(part.accepted for part in parts),
        sum(part.drafted for part in parts),
        tokens,
        sum(part.row_passes for part in parts),
        sum(kept.numel() * kept.element_size() for kept in states) / 2**30,
    )
    gathered = accelerator.gather(torch.tensor([mine], dtype=torch.float64, device=accelerator.device).float())
    accepted, drafted, tokens_of_all, passes, _ = gathered.sum(0).tolist()
    metrics = {"trb/teacher_states_gib": float(gathered[:, 4].max())}
    if passes > 0:
        metrics |= {"trb/acceptance": accepted / drafted, "trb/tokens_per_teacher_pass": tokens_of_all / passes}
    return metrics
