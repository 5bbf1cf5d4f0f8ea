"""Saves the whole student of a trainer with its model card, and says in one line why the Hub cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .loss_trainer import LossTrainer
from .model_card import Provenance, write_model_card
from .sharding import save_whole_model


class SavingTrainer(LossTrainer):
    """A trainer whose saved models are whole and have a card."""

    made_from: Provenance  # for the card

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # A checkpoint (_internal_call) keeps its shards, from which it resumes.
        folder = output_dir or self.args.output_dir
        if _internal_call or not save_whole_model(self, folder):
            super().save_model(output_dir, _internal_call)

    def write_model_card(self, folder: Path, picture: Path | None = None) -> None:
        """Writes README.md into `folder`, and copies `picture`, the curves, beside it, on the main process only."""
        if self.is_world_process_zero():
            lines = [line for line in self.state.log_history if "step" in line]
            steps = (self.state.global_step, self.state.max_steps)
            write_model_card(folder, self.made_from, self.args, steps, lines, picture)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """TRL's hook, at each checkpoint: the card so far, in the output folder."""
        self.write_model_card(Path(self.args.output_dir))

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Makes the repository of `push_to_hub`, as transformers, when the trainer is made.

        Raises:
            ValueError: It cannot be made: there is no network, no token, or no such name.
        """
        try:
            super().init_hf_repo(*args, **kwargs)
        except Exception as error:  # of any kind: huggingface_hub hands on those of its HTTP client
            reason = " ".join(str(error).split())
            raise ValueError(
                f"push_to_hub needs a repository on the Hub, which cannot be made: {type(error).__name__}: "
                f"{reason:.300}; leave push_to_hub out to train without it"
            ) from error
