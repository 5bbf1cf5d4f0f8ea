"""Evaluates a trainer's student on held-out prompts: its loss, and pass@1 if there is a verifier."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_utils import EvalLoopOutput

from ..errors import VerifierFailed
from ..evaluation.own_decoder import OwnDecoder
from ..evaluation.tasks import Decoder
from ..evaluation.verifiers import Verifier
from .checkpoints.random_state import generator_at
from .engine.rollouts import SEEDS, RolloutEngines
from .engine.student_decoder import StudentDecoder
from .metrics.pass_at_1 import measure_pass_at_1
from .saving_trainer import SavingTrainer
from .sharding import whole_for_decoding

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from ..rollout import Policy
    from ..vocab import Alignment
    from .metrics.cost import ComputeCount

# Streams of random numbers of one optimizer step; a run's numbers change if these do.
TRAIN_STREAM, EVAL_STREAM, PASS_STREAM = 0, 1, 2


class EvaluatingTrainer(SavingTrainer):
    """A trainer whose evaluation costs a run nothing, changes no step of it, and may measure pass@1."""

    compute: ComputeCount
    engines: RolloutEngines | None
    verifier: Verifier | None  # None measures no pass@1
    alignment: Alignment
    _eval_batches: int = 0  # of the present evaluation

    @property
    def policy(self) -> Policy:
        """The policy that writes the training prefixes, at whose budget an engine is built."""
        raise NotImplementedError

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        self._eval_batches = 0
        # An evaluation that was interrupted has logged nothing: its sums would be part of this one's means.
        self._metrics["eval"].clear()
        self._prefix_means["eval"].pop()
        with self.compute.paused(), nullcontext() if self.engines is None else self.engines.evaluating():
            output: EvalLoopOutput = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            assert output.metrics is not None
            # transformers averages the means of micro-batches, which would make it depend on their size.
            if means := self._prefix_means["eval"].means():
                output.metrics[f"{metric_key_prefix}_loss"] = means["trb/reverse_kl"]
            if self.verifier is not None:
                found = self._pass_at_1(dataloader.dataset)
                output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except VerifierFailed:  # the steps since the last checkpoint are good
            self.model.train()  # their sums are logged as those of training
            self.control.should_evaluate, self.control.should_save = False, True
            self.control.should_log = self.args.logging_strategy != "no"
            super()._maybe_log_save_evaluate(*args, **kwargs)
            raise

    def _pass_at_1(self, dataset: Any) -> dict[str, float]:
        assert self.verifier is not None
        generator = self._generator(PASS_STREAM)
        with ExitStack() as stack:
            decoder: Decoder
            if self.engines is not None:
                step, seed = self.state.global_step, generator.initial_seed() % SEEDS
                blended = self.engines.needs_teacher(self.policy, step, self.state.max_steps)
                decoder = StudentDecoder(self.engines, self._tokenizer, blended=blended, step=step, seed=seed)
            else:
                decoder = OwnDecoder(
                    stack.enter_context(whole_for_decoding(self.model_wrapped, self.accelerator, self.args)),
                    self._tokenizer,
                    batch_size=self.args.per_device_eval_batch_size,
                    alignment=self.alignment,
                    generator=generator,
                )
            return measure_pass_at_1(
                dataset,
                decoder,
                self.verifier,
                encode=lambda prompts: self._tokenize_prompts(prompts)[0],
                accelerator=self.accelerator,
                samples=self.args.eval_samples,
                max_new_tokens=self.max_completion_length,
            )

    def _generator(self, stream: int, *position: int) -> torch.Generator:
        """Random numbers that depend on the place in the run at which they are used, and on nothing before it."""
        return generator_at(self.args.seed, stream, self.state.global_step, self.accelerator.process_index, *position)
