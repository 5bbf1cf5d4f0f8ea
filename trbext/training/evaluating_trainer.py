"""Evaluates a trainer's student on held-out prompts: its loss, and pass@1 if there is a verifier."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers.trainer_utils import EvalLoopOutput

from ..evaluation.pass_at_k import evaluate_pass_at_1
from ..evaluation.verifiers import Verifier, check_verified
from .checkpoints.random_state import generator_at
from .saving_trainer import SavingTrainer
from .sharding import whole_for_decoding

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from .engine.rollouts import RolloutEngines
    from .metrics.cost import ComputeCount

# Streams of random numbers of one optimizer step; a run's numbers change if these do.
TRAIN_STREAM, EVAL_STREAM, PASS_STREAM = 0, 1, 2


class EvaluatingTrainer(SavingTrainer):
    """A trainer whose evaluation costs a run nothing, changes no step of it, and may measure pass@1."""

    compute: ComputeCount
    engines: RolloutEngines | None
    verifier: Verifier | None  # None measures no pass@1
    _eval_batches: int = 0  # of the present evaluation

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        self._eval_batches = 0
        with self.compute.paused(), nullcontext() if self.engines is None else self.engines.evaluating():
            output: EvalLoopOutput = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            if self.verifier is not None:
                assert output.metrics is not None
                output.metrics.update(self._pass_at_1(dataloader.dataset, metric_key_prefix))
        return output

    def _pass_at_1(self, dataset: Any, prefix: str) -> dict[str, float]:
        """pass@1 of the student at temperature 1, and the number of completions on which the verifier raised.

        It is the share of right completions, `eval_samples` of each prompt; one on which the verifier raised is wrong.
        """
        if not isinstance(dataset, Dataset):
            raise ValueError(f"pass@1 needs an eval_dataset of known length, got {type(dataset).__name__}")
        assert self.verifier is not None
        mine = range(self.accelerator.process_index, len(dataset), self.accelerator.num_processes)
        with whole_for_decoding(self.model_wrapped, self.accelerator, self.args) as student:
            evaluation = evaluate_pass_at_1(
                student,
                self._tokenizer,
                [dataset[index] for index in mine],
                self.verifier,
                samples=self.args.eval_samples,
                max_new_tokens=self.max_completion_length,
                batch_size=self.args.per_device_eval_batch_size,
                generator=self._generator(PASS_STREAM),
                alignment=self.alignment,
                encode=lambda prompts: self._tokenize_prompts(prompts)[0],
            )
        counts = torch.tensor([sum(evaluation.correct), evaluation.verifier_errors], device=self.accelerator.device)
        right, errors = self.accelerator.reduce(counts, reduction="sum").tolist()
        completions = len(dataset) * self.args.eval_samples
        check_verified(errors, completions, evaluation.first_error)
        return {
            f"{prefix}_pass@1": right / completions,
            f"{prefix}_verifier_errors": errors,
        }

    def _generator(self, stream: int, *position: int) -> torch.Generator:
        """Random numbers that depend on the place in the run at which they are used, and on nothing before it."""
        return generator_at(self.args.seed, stream, self.state.global_step, self.accelerator.process_index, *position)
