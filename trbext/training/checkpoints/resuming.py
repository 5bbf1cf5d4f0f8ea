"""Continues a run from a checkpoint exactly, also if transformers would continue from something else."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from trl import DistillationTrainer

from ...data.prompt_order import ResumableSampler, prompts_of_a_step
from ...data.prompt_stream import EndlessPrompts
from ..drafting import Drafting
from ..metrics.cost import ComputeCount
from ..rollout_length import RolloutLength
from .completeness import IncompleteCheckpoint, check_checkpoint
from .random_state import forked_random_state
from .weights import check_adapter, has_weights, load_weights

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)


class OwnCadence(TrainerCallback):
    """Logs, evaluates and saves as often as the arguments say; transformers would do as the checkpoint says.

    Also logs before it saves, because a checkpoint does not hold what has gathered since the last log.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        may_save = control.should_save or (args.save_strategy == "best" and control.should_evaluate)
        if may_save and args.logging_strategy != "no":
            control.should_log = True

    on_epoch_end = on_step_end


class HeldOutStream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """The rows of a held-out stream, in the same order each time, and how many there were."""

    def __init__(self, rows: IterableDataset) -> None:
        self._rows = rows
        self.count = 0  # of the rows that have been read in the present pass

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.count = 0
        for row in self._rows:
            self.count += 1
            yield row


class ResumableTrainer(DistillationTrainer):  # type: ignore[misc]  # TRL is untyped
    """TRL's trainer, which trains after a checkpoint exactly what it would have trained without an interruption."""

    compute: ComputeCount
    drafting: Drafting
    length: RolloutLength
    _rows_of_kept: Mapping[str, Any] = MappingProxyType({})  # of each held-out dataset whose loader TRL may keep

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains as transformers' `Trainer.train`.

        There are three differences: a checkpoint of the last step trains nothing, the evaluation at the start is not
        repeated, and a checkpoint that lacks a part is refused.

        Args:
            resume_from_checkpoint: A folder "checkpoint-N", or True for the last one in `output_dir`.
            *args: As transformers.
            **kwargs: As transformers.

        Raises:
            IncompleteCheckpoint: (a ValueError) a file of the checkpoint is missing or cut short, or its weights are
                not those of the student, or its optimizer is another.
            ValueError: The trainer was made without a train_dataset.
            NonFiniteTraining: (a FloatingPointError) a loss or gradient is NaN or infinite.
        """
        if self.train_dataset is None:
            raise ValueError("train_dataset must be the prompts to train on, got None")
        if not any(isinstance(callback, OwnCadence) for callback in self.callback_handler.callbacks):
            self.add_callback(OwnCadence())
        checkpoint = self._checked(resume_from_checkpoint)
        self._forget_unfinished_step()
        at_start = self.args.eval_on_start
        self.args.eval_on_start = at_start and checkpoint is None
        try:
            output = super().train(None if checkpoint is None else str(checkpoint), *args, **kwargs)
        finally:
            self.args.eval_on_start = at_start
        self._warn_of_lost_best()
        return output

    def _forget_unfinished_step(self) -> None:
        """Drops what an earlier call of `train` left when it was ended between two micro-batches."""
        self._step, self._buffered_inputs = 0, None  # TRL's: it would train on the rollouts of that step
        self._current_train_step_time = 0.0
        self._metrics["train"].clear()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # transformers would look only after one step more
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        checkpoint = Path(resume_from_checkpoint)
        if self._loads_whole_weights(checkpoint):
            load_weights(self.model, checkpoint)
            return
        if hasattr(self.model, "peft_config") and not self.is_fsdp_enabled:
            check_adapter(self.model, checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _named(checkpoint, "its optimizer.pt or scheduler.pt"):
            super()._load_optimizer_and_scheduler(checkpoint)
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # inside accelerate's
        settings = set(getattr(optimizer, "defaults", ()))
        for group in getattr(optimizer, "param_groups", ()):
            lacking = sorted(settings - group.keys())
            if lacking:  # its settings are those of the checkpoint now, whatever `optim` says
                raise IncompleteCheckpoint(
                    f"{checkpoint} has the state of another optimizer than {type(optimizer).__name__}, without "
                    f"{', '.join(lacking)}: continue with the `optim` that it was saved with, got "
                    f"{getattr(self.args.optim, 'value', self.args.optim)}"
                )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _named(checkpoint, "its random state", RuntimeError):  # torch's, of a state of another size
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint or "")
        if self._loads_whole_weights(best):
            load_weights(self.model, best)
        else:
            super()._load_best_model()

    def _loads_whole_weights(self, checkpoint: Path) -> bool:
        """Returns whether the student is a whole model of transformers, and so are the weights in `checkpoint`."""
        whole = not (self.is_fsdp_enabled or self.is_deepspeed_enabled) and isinstance(self.model, PreTrainedModel)
        return whole and getattr(self.model, "hf_quantizer", None) is None and has_weights(checkpoint)

    def _load_callback_state(self) -> None:
        # transformers would make new ones from what they saved, while hooks and the trainer hold the old ones. These
        # load their own state when training begins.
        own = (self.compute, self.drafting, self.length)
        kept = {type(each).__name__: self.state.stateful_callbacks.pop(type(each).__name__, None) for each in own}
        super()._load_callback_state()
        self.state.stateful_callbacks |= {name: state for name, state in kept.items() if state is not None}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        # Dropout of the next step must not depend on whether there was an evaluation before it.
        with forked_random_state(self.accelerator.device):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def get_train_dataloader(self) -> DataLoader[Any]:
        if not isinstance(self.train_dataset, IterableDataset):
            loader: DataLoader[Any] = super().get_train_dataloader()
            return loader
        accumulation, rollouts = self.args.gradient_accumulation_steps, self.args.rollouts_per_prompt
        per_step = self._rollouts_of_a_step()
        endless: DataLoader[Any] = self._get_dataloader(
            dataset=EndlessPrompts(
                self.train_dataset,
                prompts=prompts_of_a_step(
                    per_step, rollouts, per_step
                ),  # the stream itself finds out how many there are
                rollouts_per_prompt=rollouts,
                repeats=accumulation,
                shuffle_seed=self.args.seed if self.shuffle_dataset else None,
            ),
            description="Training",
            batch_size=self._train_batch_size * accumulation,
            is_training=True,
        )
        return endless

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        # TRL keeps the loader whose workers stay, and would take it for any other dataset without a name, or of it.
        named = isinstance(eval_dataset, str)
        held_out = eval_dataset is None or named
        if held_out:
            name, rows = (eval_dataset, self.eval_dataset[eval_dataset]) if named else ("eval", self.eval_dataset)
            kept = vars(self).get("_eval_dataloaders", {})
            if name in kept and self._rows_of_kept[name] is not rows:
                old = kept.pop(name)  # accelerate, which forgets its loaders when a training begins, may have it too
                self.accelerator._dataloaders = [each for each in self.accelerator._dataloaders if each is not old]
            self._rows_of_kept = {**self._rows_of_kept, name: rows}
        with _with_fields(self.args, **({} if held_out else {"dataloader_persistent_workers": False})):
            loader: DataLoader[Any] = super().get_eval_dataloader(eval_dataset)
        return loader

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        # Only a held-out stream comes as it is. accelerate would give each process another share of it.
        rows = HeldOutStream(dataset) if isinstance(dataset, IterableDataset) else dataset
        # TRL reads streams without workers, and torch refuses what would be said of them.
        names = ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context")
        of_workers = dict(zip(names, (False, None, None), strict=True))
        with _with_fields(self.args, **({} if self.args.dataloader_num_workers else of_workers)):
            loader: DataLoader[Any] = super()._get_dataloader(rows, *args, **kwargs)
        return loader

    def _get_eval_sampler(self, eval_dataset: Dataset) -> ResumableSampler:
        # Each evaluation has the same order, also if persistent workers keep the sampler between two of them.
        return ResumableSampler(data_source=eval_dataset, mini_repeat_count=1, seed=self.args.seed, epoch=lambda: 0)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> ResumableSampler:
        dataset = self.train_dataset if dataset is None else dataset
        accumulation, rollouts = self.args.gradient_accumulation_steps, self.args.rollouts_per_prompt
        per_step = self._rollouts_of_a_step()
        prompts = prompts_of_a_step(per_step, rollouts, len(dataset))
        steps_per_epoch = len(dataset) // prompts
        return ResumableSampler(
            data_source=dataset,
            batch_size=prompts,
            mini_repeat_count=rollouts,
            repeat_count=accumulation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
            epoch=lambda: self.state.global_step // steps_per_epoch,
        )

    def _rollouts_of_a_step(self) -> int:
        """Returns the number of rollouts of one optimizer step, on all processes."""
        return int(self._train_batch_size * self.accelerator.num_processes * self.args.gradient_accumulation_steps)

    def _checked(self, resume_from_checkpoint: str | bool | None) -> Path | None:
        """Returns the complete checkpoint from which `train` is asked to continue; None to begin at the start."""
        if not resume_from_checkpoint:
            return None
        folder = self.args.output_dir
        found = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else get_last_checkpoint(folder)
        if found is None:
            raise ValueError(f"there is no checkpoint in {folder} from which to continue")
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        check_checkpoint(Path(found), self.args.world_size, self.args.process_index, sharded=sharded)
        return Path(found)

    def _warn_of_lost_best(self) -> None:
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and (best is None or not Path(best).is_dir()):
            logger.warning(
                "load_best_model_at_end: the best checkpoint%s is gone or was never saved, so the model is that of the "
                "last step, %d",
                "" if best is None else f" {best}",
                self.state.global_step,
            )


@contextmanager
def _with_fields(args: TrainingArguments, **values: Any) -> Iterator[None]:
    """Sets fields for a while, of those that this version of transformers has."""
    before = {name: getattr(args, name) for name in values if hasattr(args, name)}
    try:
        vars(args).update({name: values[name] for name in before})
        yield
    finally:
        vars(args).update(before)


@contextmanager
def _named(checkpoint: str | None, part: str, *also: type[Exception]) -> Iterator[None]:
    """Turns what a state of other contents causes, while it is loaded, into an IncompleteCheckpoint."""
    kinds: tuple[type[Exception], ...] = (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        pickle.UnpicklingError,
        *also,
    )
    try:
        yield
    except kinds as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.400}"
        raise IncompleteCheckpoint(f"{checkpoint} cannot be resumed: {part} cannot be loaded ({reason})") from error
