"""What a trainer keeps of speculative rollouts: the draft length over steps and checkpoints, teacher states,
metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..models.eval_mode import evaluating
from ..models.rollback_model import cannot_roll_back
from ..rollout import DraftLength, Rollout
from .callback_state import saved_attributes

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel


class Drafting(TrainerCallback, ExportableState):
    """The draft length of a run: a fixed one, or one whose costs are measured in the run's first blended step.

    The main process's costs then hold for all processes and all later steps, and go into every checkpoint: a resumed
    run chooses as the run that was not interrupted, and repeats it exactly.
    """

    def __init__(self, draft_length: str | int) -> None:
        self.draft_length: int | DraftLength = DraftLength() if draft_length == "auto" else int(draft_length)

    def try_models(self, *models: PreTrainedModel) -> None:
        """Let the decoder find out whether it can speculate with these, which takes a few forwards the first time."""
        if self.draft_length != 0:
            with torch.no_grad(), evaluating(models):
                for model in models:
                    cannot_roll_back(model)

    def end_step(self) -> None:
        """After the rollouts of a step that asked the teacher. Every process calls it."""
        if not isinstance(self.draft_length, DraftLength) or self.draft_length.frozen:
            return
        costs = [self.draft_length.state()]
        broadcast_object_list(costs)
        self.draft_length.load_state(costs[0])
        self.draft_length.freeze()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        costs = self.draft_length.state() if isinstance(self.draft_length, DraftLength) else None
        return {"args": {}, "attributes": {"costs": costs}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        costs = saved_attributes(self, state)["costs"]
        if isinstance(self.draft_length, DraftLength) and costs is not None:
            self.draft_length.load_state(costs)


def drafting_metrics(rollouts: Sequence[Rollout], accelerator: Accelerator) -> dict[str, float]:
    """Acceptance and tokens per teacher pass of a step's speculative rollouts, and the teacher states kept: GiB of the
    process with the most. Every process calls it."""
    speculative = [(rollout, rollout.speculation) for rollout in rollouts if rollout.speculation is not None]
    states = [rollout.teacher_states for rollout in rollouts if rollout.teacher_states is not None]
    mine = (
        sum(part.accepted for _, part in speculative),
        sum(part.drafted for _, part in speculative),
        sum(int(rollout.mask.sum()) for rollout, _ in speculative),
        sum(part.row_passes for _, part in speculative),
        sum(kept.untyped_storage().nbytes() for kept in states) / 2**30,
    )
    gathered = accelerator.gather(torch.tensor([mine], dtype=torch.float32, device=accelerator.device))
    accepted, drafted, tokens, passes, _ = gathered.sum(0).tolist()
    metrics = {"trb/teacher_states_gib": float(gathered[:, 4].max())}
    if passes > 0:
        metrics |= {"trb/acceptance": accepted / drafted, "trb/tokens_per_teacher_pass": tokens / passes}
    return metrics


def teacher_states(rollouts: Sequence[Rollout], completion_ids: Tensor, accelerator: Accelerator) -> Tensor | None:
    """[B, T, H] of a step's rollouts, for the completions [B, T]; None unless every process has all of its own.

    A process that asks the teacher again needs the others with it, where the teacher is sharded. Every process calls
    it.
    """
    rows, tokens = completion_ids.shape
    parts = [rollout.teacher_states for rollout in rollouts]
    # More rows than completions: conversations of several turns, whose tokens are not one rollout's.
    complete = all(part is not None for part in parts) and sum(len(rollout.tokens) for rollout in rollouts) == rows
    flag = torch.tensor([int(complete)], device=accelerator.device)
    if int(accelerator.gather(flag).min()) == 0:
        return None
    return torch.cat([F.pad(part, (0, 0, 0, tokens - part.shape[1])) for part in parts if part is not None])


def without_teacher_states(rollouts: Sequence[Rollout]) -> list[Rollout]:
    return [dataclasses.replace(rollout, teacher_states=None) for rollout in rollouts]
