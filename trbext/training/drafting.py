"""Keeps the draft length of a run over its optimizer steps and checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..models.eval_mode import evaluating
from ..rollout import DraftLength
from ..rollout.caches import cannot_take_back, named_models
from .checkpoints.callback_state import saved_attributes


class Drafting(TrainerCallback, ExportableState):
    """The draft length of a run: a fixed one, or one whose costs are measured in the first step that needs the teacher.

    The costs of the main process then hold for all processes and all later steps, and are part of every checkpoint. A
    resumed run therefore chooses as the run that was not interrupted, and repeats it exactly.

    Args:
        draft_length: "auto", or the number of drafts in a round.
    """

    def __init__(self, draft_length: str | int) -> None:
        self.draft_length: int | DraftLength = DraftLength() if draft_length == "auto" else int(draft_length)

    def try_models(self, *models: Any) -> None:
        """Lets the decoder find out whether it can speculate with these models, by a few forwards the first time."""
        if self.draft_length != 0:
            parts = [part for model in models for _, part in named_models("", model) if hasattr(part, "modules")]
            with torch.no_grad(), evaluating(parts):
                for model in models:
                    cannot_take_back(model)

    def end_step(self) -> None:
        """Ends the measuring after the rollouts of a step that needed the teacher. Every process calls it."""
        if not isinstance(self.draft_length, DraftLength) or self.draft_length.frozen:
            return
        costs = [self.draft_length.state()]
        broadcast_object_list(costs)
        self.draft_length.load_state(costs[0])
        self.draft_length.freeze()

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        costs = self.draft_length.state() if isinstance(self.draft_length, DraftLength) else None
        return {"args": {}, "attributes": {"costs": costs}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        costs = saved_attributes(self, state)["costs"]
        if isinstance(self.draft_length, DraftLength) and costs is not None:
            self.draft_length.load_state(costs)
