"""Computes the loss of a trainer from the hidden states of both models, logs it per prefix, and stops at NaN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate.data_loader import IterableDatasetShard
from torch import Tensor
from transformers import PreTrainedModel

from ..models.cached_model import unwrap
from ..models.completion_states import completion_states
from ..models.lm_head import Head, LMHead, lm_head
from ..models.next_token import TokenScorer, TopKTeacher, is_transformers
from ..rollout import Rollout
from ..teachers import Mixture
from ..vllm.sampler.teacher_top import TeacherTop
from ..vocab import Alignment
from .checkpoints.resuming import ResumableTrainer
from .config import TRBConfig
from .engine.teacher_top_loss import prefix_loss_of_top
from .fields.teacher import wrong_for_top_k
from .finite import stop_non_finite
from .losses import in_chunks
from .metrics.prefix_means import PrefixMeans
from .objective import Objective, prefix_loss
from .sharding import whole_for_decoding
from .teachers.offload import OffloadedWeights
from .teachers.states import CompletionBatch, head_of, teacher_states
from .teachers.top_k import require_token_scores, told_at_prefixes, told_of_tokens


class LossTrainer(ResumableTrainer):
    """A trainer whose loss merges EOS ids, can be another than TRL's, and reuses the teacher states of the rollouts."""

    args: TRBConfig
    alignment: Alignment
    teacher_model: Any  # None if only an engine or a server has it
    _top_k_teacher: TopKTeacher | None = None  # the server, or what stands for one
    _token_scorer: TokenScorer | None = None  # the same, if it is asked about the student's tokens
    _teacher_weights: Tensor | None = None  # [B, n] of the batch, if its rows are routed to their teachers
    _offloaded: OffloadedWeights | None = None  # the teacher's, if they are on the host while nothing reads them
    _fused_loss: bool  # whether TRL's fused loss serves these models

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prefix_sums: Tensor | None = None  # of the last micro-batch, see `PrefixMeans.sums`
        self._scored: tuple[Tensor, Tensor] | None = None  # its log pi_T [N], and the tokens [B, C] of which it is
        self._prefix_means = {"train": PrefixMeans(), "eval": PrefixMeans()}

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, None]:
        # TRL calls the backbones and not the forward that carries accelerate's autocast: without this, a bf16 run would
        # compute its loss in float32 while its rollouts are bfloat16.
        with self.accelerator.autocast():
            loss: Tensor | tuple[Tensor, None] = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        assert self._prefix_sums is not None
        # Not inside the wrapped forward: a collective there would race DDP's and FSDP's own.
        mode = "train" if self.model.training else "eval"
        self._prefix_means[mode].add(self._prefix_sums, self.accelerator)
        if self.model.training and self.length.adapts:
            assert self._scored is not None
            log_prob, scored = self._scored
            self.length.add(log_prob, scored.to(log_prob.device), self.accelerator)
        self._scored = None
        if self.model.training:
            value = loss[0] if isinstance(loss, tuple) else loss
            # All processes see the loss of each: one that stopped by itself would leave the others waiting for it.
            total = self.accelerator.reduce(value.detach().float(), reduction="sum")
            stop_non_finite("loss", total, self.state.global_step + 1, self.model)
        return loss

    def _get_last_hidden_state(
        self,
        unwrapped_model: PreTrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        **images: Any,
    ) -> Tensor:
        # TRL's own passes the left-padded batch without positions, and so scores rows of GPT-2 at shifted positions.
        return completion_states(unwrap(unwrapped_model), input_ids, attention_mask, logits_to_keep)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # The loss scaler of fp16 (DeepSpeed has its own) expects infinite gradients: it skips the step and is lowered.
        if norm is not None and self.accelerator.mixed_precision != "fp16":
            stop_non_finite("gradient norm", norm, self.state.global_step + 1, self.model)
        return norm

    def _compute_loss(
        self, unwrapped_student: PreTrainedModel, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of one micro-batch, the sum of student entropies, and the number of prefixes, as TRL expects."""
        # 1. The last hidden states of both models at the prefix of each token of the completions.
        input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        scored = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        if not self.model.training:
            scored[self._own_rows(len(scored)) :] = 0
        kept = inputs["completion_ids"].shape[1]
        student_hidden = self._get_last_hidden_state(unwrapped_student, input_ids, attention_mask, kept)
        if self.teacher_model is None:
            return self._loss_of_top(unwrapped_student, student_hidden, scored, inputs, num_items_in_batch)
        objective = self._objective()
        fused = self._fused_loss and objective.is_plain
        student_head = lm_head(unwrapped_student, gather_zero3=not fused).narrowed(self.alignment.width)
        teacher_hidden, teacher_head = self._teacher_states(inputs, student_head.device, fused=fused)
        # 2. The loss, from the states and the heads.
        valid = (scored != 0).to(student_head.weight.device)
        prefixes = valid.sum()
        terms = prefix_loss(
            student_hidden,
            teacher_hidden,
            student_head,
            teacher_head,
            valid,
            inputs["completion_ids"],
            inputs.get("log_weight"),
            inputs.get("accepted"),
            objective=objective,
            fused_beta=(self.beta if self.model.training else 1.0) if fused else None,
            items=prefixes.clamp(min=1) if num_items_in_batch is None else num_items_in_batch,
            alignment=self.alignment,
            temperature=self.temperature,
        )
        self._prefix_sums, self._scored = terms.prefix_sums, (terms.teacher_log_prob, scored != 0)
        return terms.loss, terms.entropy_sum, prefixes

    def _own_rows(self, rows: int) -> int:
        """Returns how many rows of a held-out batch of `rows` are no repetitions, by which accelerate fills up the last
        batch of the processes."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader:
            return rows
        remainder, dataset = state.remainder, state.active_dataloader.dataset
        if isinstance(dataset, IterableDatasetShard):  # of a stream, whose length accelerate does not know
            remainder = dataset.dataset.count % (rows * self.accelerator.num_processes)
        if remainder <= 0:
            return rows
        return int(min(max(remainder - self.accelerator.process_index * rows, 0), rows))

    @contextmanager
    def _teacher_for_decoding(self, part: int, rows: int) -> Iterator[Any]:
        """Yields the teacher of a part of the batch, on its device and with whole weights."""
        teacher: Any = self.teacher_model if self._top_k_teacher is None else self._top_k_teacher
        assert teacher is not None
        with ExitStack() as stack:
            if self._offloaded is not None:
                stack.enter_context(self._offloaded.on_device())
            if isinstance(teacher, Mixture):
                whole = tuple(self._whole(each, stack) for each in teacher.teachers)
                teacher = replace(teacher, teachers=whole)
                if self._teacher_weights is not None:
                    start = part * (self.args.rollout_batch_size or 0)
                    teacher = teacher.with_weights(self._teacher_weights[start : start + rows])
            else:
                teacher = self._whole(teacher, stack)
            yield teacher

    def _whole(self, teacher: Any, stack: ExitStack) -> Any:
        """Returns a teacher out of its wrappers and with whole weights until `stack` is left, if it has any."""
        if not (isinstance(teacher, torch.nn.Module) and is_transformers(teacher)):
            return teacher
        return stack.enter_context(whole_for_decoding(teacher, self.accelerator, self.args))

    def _teacher_states(self, inputs: dict[str, Any], device: torch.device, *, fused: bool) -> tuple[Tensor, Head]:
        """Returns the teacher's states [B, C, H] at the prefixes of a micro-batch, and its head."""
        teacher: Any = self.teacher_model
        kept = inputs.get("teacher_states")  # of the rollout, if they were kept
        if kept is not None:
            head = head_of(teacher, self.alignment, gather_zero3=not fused)
            if self._offloaded is not None:  # the head is all that this loss needs of the teacher
                with self._offloaded.timed():
                    head = head.detached(device)
            return kept, head
        if "teacher_weights" in inputs:
            teacher = teacher.with_weights(inputs["teacher_weights"])
        batch = CompletionBatch.of(inputs)
        with torch.no_grad(), nullcontext() if self._offloaded is None else self._offloaded.on_device():
            states, found = teacher_states(
                teacher,
                batch,
                of_model=self._states_of_model,
                alignment=self.alignment,
                temperature=self.temperature,
                gather_zero3=not fused,
                device=device,
            )
            # The backward pass computes logits again, after the teacher has left.
            return states, found if self._offloaded is None else found.detached(device)

    def _states_of_model(self, model: Any, batch: CompletionBatch) -> Tensor:
        unwrapped = self.accelerator.unwrap_model(model)
        ids, mask = batch.whole
        states: Tensor = self._forward_redirection(
            model, unwrapped, self._get_last_hidden_state, unwrapped, ids, mask, batch.completion_ids.shape[1]
        )
        return states

    def _use_top_k_teacher(self, teacher: TopKTeacher) -> None:
        """Takes what a server tells as the teacher.

        Raises:
            ValueError: The loss needs what it does not tell.
        """
        for reason in wrong_for_top_k(self.args):
            raise ValueError(reason)
        self._top_k_teacher = teacher
        if self.args.loss_tokens_of == "student":
            assert self.args.loss_top_k is not None
            self._token_scorer = require_token_scores(teacher, self.args.loss_top_k, self.alignment)

    def _told_of_teacher(self, rollouts: Sequence[Rollout], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Returns what a server says at each prefix of a batch, by the names that `_loss_of_top` reads."""
        teacher = self._top_k_teacher
        assert teacher is not None
        if self._token_scorer is None:
            return told_at_prefixes(teacher, rollouts, batch, self.alignment)
        # The completions of several optimizer steps: as many rows at a time as one micro-batch has.
        size = self.args.per_device_train_batch_size
        starts = range(0, len(batch["completion_ids"]), size)
        parts = [CompletionBatch.of(batch, slice(start, start + size)) for start in starts]
        with torch.no_grad(), self.accelerator.autocast():
            head = lm_head(self.accelerator.unwrap_model(self.model)).narrowed(self.alignment.width)
            ids = torch.cat([self._top_of_student(self._states_of_model(self.model, part), head) for part in parts])
        return told_of_tokens(self._token_scorer, batch, ids, self.alignment)

    def _top_of_student(self, states: Tensor, head: LMHead) -> Tensor:
        """Returns the student's loss_top_k most probable tokens [B, C, k] after its states [B, C, H]."""
        k = self.args.loss_top_k
        assert k is not None

        def top(hidden: Tensor) -> tuple[Tensor]:
            return (self.alignment.canonical(head(hidden), self.temperature).topk(k).indices,)

        (found,) = in_chunks(top, head.weight.shape[0], states.flatten(0, 1).to(head.device))
        return found.view(*states.shape[:2], -1)

    def _objective(self) -> Objective:
        """Held-out prompts are judged by the divergence from the teacher, whatever is minimized."""
        if self.model.training:
            return self.args.objective(self.state.global_step, self.state.max_steps)
        return Objective("full" if self.args.loss_top_k is None else "top_k", self.args.loss_top_k)

    def _loss_of_top(
        self,
        unwrapped_student: PreTrainedModel,
        student_hidden: Tensor,
        scored: Tensor,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what `_compute_loss` does, if the batch holds what an engine or a server said of the teacher."""
        head = lm_head(unwrapped_student).narrowed(self.alignment.width)
        prefixes = (scored != 0).sum()
        terms = prefix_loss_of_top(
            student_hidden,
            head,
            scored != 0,
            inputs["completion_ids"],
            TeacherTop(*(inputs[name] for name in ("top_ids", "top_log_prob", "rest_log_prob"))),
            inputs.get("teacher_log_prob"),
            objective=self._objective(),
            items=prefixes.clamp(min=1) if num_items_in_batch is None else num_items_in_batch,
            alignment=self.alignment,
            temperature=self.temperature,
        )
        self._prefix_sums, self._scored = terms.prefix_sums, (terms.teacher_log_prob, scored != 0)
        return terms.loss, terms.entropy_sum, prefixes

    def _forget_unfinished_step(self) -> None:
        super()._forget_unfinished_step()
        self._prefix_means["train"].pop()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        for name, value in self._prefix_means[mode].pop().items():
            if name == "trb/reverse_kl" and mode == "train" and self.beta != 1.0:  # the loss is another divergence
                continue
            if name == "trb/teacher_entropy" and self.teacher_model is None:  # top tokens do not tell it
                continue
            self._metrics[mode][name].append(value)
        if self._offloaded is not None:
            logs = {**logs, "trb/teacher_load_seconds": self._offloaded.pop_seconds()}
        if self.compute.started:
            logs = {**logs, **self.compute.totals()}
        super().log(logs, start_time)
