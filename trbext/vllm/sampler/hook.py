"""Draws the tokens of vLLM's V1 model runner from mu, where the runner would call its samplers.

A step of the runner ends in `_sample(logits, metadata)`. `logits` are the teacher's: one row for each draft, and one
more for each request. `runner._draft_probs` [B', k, V] are the student's probabilities from which the drafts were drawn
in the step before, for the requests `runner._draft_prob_req_ids`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import trbext  # noqa: F401  # registers torch.ops.trb

from ..requests import NO_KEY, check_request
from ..versions import check_runner
from .counters import Counters
from .row_layout import Flags, RowLayout, on_device
from .step_records import Step, StepRecords
from .teacher_draw import draw_from_teacher
from .teacher_top import teacher_top
from .vocabulary import Vocabulary

PROBABILITIES = 1  # verify's student_kind


@dataclass(frozen=True)
class Settings:
    """What an engine is told once, before its first rollout."""

    vocabulary: Vocabulary
    epsilon: float = 0.0  # KL budget of requests that name none of their own, nats per token
    seed: int = 0
    top_k: int = 0  # tokens of `TeacherTop` that are recorded; 0 records none


class Hook:
    """Replaces the samplers of one V1 model runner.

    Args:
        runner: vLLM's GPUModelRunner or CPUModelRunner.
        settings: Of the engine.

    Raises:
        RuntimeError: This vLLM, or the way the engine is set up, is not one with which tokens would follow mu.
    """

    def __init__(self, runner: Any, settings: Settings) -> None:
        check_runner(runner)
        self._runner, self.settings = runner, settings
        self._device: torch.device = runner.device
        self.draft_length: int = runner.speculative_config.num_speculative_tokens
        self.generator = torch.Generator(self._device)
        self.generator.manual_seed(settings.seed)
        self.counters, self.records = Counters(self._device), StepRecords()
        self.epsilon = settings.epsilon
        self._metadata: Any = None  # the sampling metadata of the batch that the following describe
        self._epsilons = torch.empty(0)
        self._held_out = self._keys = np.empty(0, np.int64)
        self._stock_draft = runner.drafter._sample_from_logits
        self.install()

    def install(self) -> None:
        """Makes the runner draw from mu. It changes this runner only, not its class."""
        self._runner._sample = self.sample
        self._runner.drafter._sample_from_logits = self.draft

    def remove(self) -> None:
        """Gives the runner its own samplers back."""
        self._runner.__dict__.pop("_sample", None)
        self._runner.drafter._sample_from_logits = self._stock_draft

    def reseed(self, seed: int) -> None:
        """Sets the seed of the verification of drafts."""
        self.generator.manual_seed(seed)

    def set_epsilon(self, epsilon: float) -> None:
        """Sets the budget of requests that name none of their own, nats per token."""
        self.epsilon, self._metadata = epsilon, None

    def draft(self, logits: Tensor, sampling_metadata: Any) -> Any:
        """The draft model's `_sample_from_logits`, over the vocabulary that both models share."""
        self.settings.vocabulary.canonical_(logits, sampling_metadata.temperature)
        return self._stock_draft(logits, sampling_metadata)

    def sample(self, logits: Tensor, metadata: Any) -> Any:
        """The runner's `_sample`: the tokens of a step."""
        from vllm.v1.outputs import SamplerOutput

        batch = self._runner.input_batch
        batch.update_async_output_token_ids()
        self._read_requests()
        temperature = batch.sampling_metadata.temperature
        if metadata is None:
            counts = np.zeros(batch.num_reqs, np.int64)
            tokens = torch.full((batch.num_reqs, 1), -1, dtype=torch.int32, device=self._device)
            usable: Flags = np.zeros(batch.num_reqs, bool)
        else:
            owners, probs = self._runner._draft_prob_req_ids, self._runner._draft_probs
            layout = RowLayout.of(
                metadata.num_draft_tokens,
                batch.req_ids,
                None if probs is None else owners,
                self.draft_length if probs is None else probs.shape[1],
            )
            counts, usable = layout.counts, layout.usable
            tokens = self._verify(logits, metadata, layout, temperature)
        if not usable.all():
            self._without_drafts(tokens, logits, counts, ~usable, temperature)
        return SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=None)

    def _read_requests(self) -> None:
        """Reads what the requests ask for. vLLM makes new sampling metadata if the batch changes, and only then."""
        batch = self._runner.input_batch
        if batch.sampling_metadata is self._metadata:
            return
        asked = [check_request(self._runner.requests[request].sampling_params) for request in batch.req_ids]
        epsilons = [self.epsilon if one.epsilon is None else one.epsilon for one in asked]
        self._epsilons = on_device(np.array(epsilons, np.float32), self._device)
        self._held_out = np.array([one.held_out for one in asked], np.int64)
        self._keys = np.array([one.key for one in asked], np.int64)
        self._metadata = batch.sampling_metadata

    def _places(self, counts: np.ndarray[Any, Any]) -> Tensor:
        """[B] the place, in the output of each request, of the first token of this step.

        The lengths of the sequences are read on the device: those on the host run ahead under asynchronous scheduling.
        """
        batch, n = self._runner.input_batch, len(counts)
        seq_lens: Tensor = self._runner.seq_lens[:n]
        return seq_lens - on_device(counts + batch.num_prompt_tokens[:n], self._device)

    def _verify(self, logits: Tensor, metadata: Any, layout: RowLayout, temperature: Tensor) -> Tensor:
        n, rows, vocabulary = len(layout.counts), int(layout.counts.sum()), self.settings.vocabulary
        width = metadata.max_spec_len + 1
        tokens = torch.full((n, width), -1, dtype=torch.int32, device=self._device)
        probs = self._runner._draft_probs
        if probs is None or rows == 0:
            return tokens
        # 1. The arguments of verify. All of them are the engine's own tensors, and none is gathered.
        if vocabulary.merged or vocabulary.cuts(logits):
            of_logits = np.repeat(np.arange(n), layout.counts + 1)
            vocabulary.canonical_(logits, temperature[on_device(of_logits, self._device)])
        student = probs.flatten(0, 1)
        student_rows = None if layout.student_rows is None else on_device(layout.student_rows, self._device)
        uniforms = torch.rand((2, rows), dtype=torch.float64, device=self._device, generator=self.generator)
        recorded = bool((self._keys != NO_KEY).any())
        # 2. One call. A row without the student's probabilities has index -1, which ends its request unread.
        _, emitted, accepted, beta, kl, log_probs = torch.ops.trb.verify.out(
            student,
            logits,
            metadata.draft_token_ids,
            torch.nn.functional.pad(metadata.cu_num_draft_tokens, (1, 0)),
            self._epsilons,
            temperature,
            uniforms[0],
            uniforms[1],
            student_rows=student_rows,
            teacher_rows=metadata.target_logits_indices,
            width=width,
            vocab=vocabulary.width,
            student_kind=PROBABILITIES,
            log_probs=recorded,
            tokens=tokens,
            emitted=torch.empty(n, dtype=torch.int32, device=self._device),
            accepted=torch.empty(n, dtype=torch.int32, device=self._device),
            beta=torch.empty(rows, device=self._device),
            kl=torch.empty(rows, device=self._device),
            out_log_probs=torch.empty((n, width, 3) if recorded else (0, 0, 3), device=self._device),
        )
        # 3. What is kept of the step.
        usable = None if layout.usable.all() else on_device(layout.usable, self._device)
        self.counters.add(emitted, accepted, beta, kl, usable)
        self.counters.steps += 1
        self.counters.row_passes += int(layout.usable.sum())
        if recorded:
            top = None
            if self.settings.top_k:
                common = student[:, : vocabulary.width] if vocabulary.cuts(student) else student
                scale = temperature[on_device(layout.request_of_row, self._device)]
                top = teacher_top(
                    logits, metadata.target_logits_indices, common, student_rows, scale, self.settings.top_k
                )
            self.records.add(
                Step(
                    keys=self._keys,
                    counts=layout.counts,
                    usable=layout.usable,
                    start=self._places(layout.counts),
                    tokens=tokens.clone(),  # the engine's copy is written to below
                    emitted=emitted,
                    accepted=accepted,
                    log_probs=log_probs,
                    beta=beta,
                    kl=kl,
                    top=top,
                )
            )
        # 4. A request at fault needs a token, or vLLM would not take its drafts back. It gets 0, and its client an
        # error.
        tokens[:, 0] = torch.where((emitted < 0) & (accepted == 0), 0, tokens[:, 0])
        return tokens

    def _without_drafts(
        self, tokens: Tensor, logits: Tensor, counts: np.ndarray[Any, Any], plain: Flags, temperature: Tensor
    ) -> None:
        """Writes the tokens of the requests `plain`, of which no drafts can be verified.

        A request that has just been read gives the token back that it held out. Any other has lost its drafts, so the
        teacher draws. That token does not follow mu: its place is recorded, and the client cuts the rollout there.
        """
        batch, n = self._runner.input_batch, len(counts)
        discarded = self._runner.discard_request_mask.np[:n]  # prompts that are not read to their end
        first = batch.num_tokens_no_spec[:n] == batch.num_prompt_tokens[:n]
        rows = on_device(np.flatnonzero(plain), self._device)
        held_out = on_device(np.where(first, self._held_out, 0)[plain], self._device)
        tokens[rows] = -1
        tokens[rows, 0] = held_out.to(tokens.dtype)
        self.counters.held_out += int((plain & first & ~discarded).sum())
        lost = np.flatnonzero(plain & ~first & ~discarded)
        if len(lost) == 0:
            return
        self.counters.teacher_tokens += len(lost)
        at = (np.cumsum(counts + 1) - counts - 1)[lost]
        requests = on_device(lost, self._device)
        scale = temperature[requests]
        of_teacher = self.settings.vocabulary.canonical_(logits[on_device(at, self._device)].float(), scale)
        uniforms = torch.rand(len(lost), dtype=torch.float64, device=self._device, generator=self.generator)
        drawn = draw_from_teacher(of_teacher, torch.arange(len(lost), device=self._device), scale, uniforms)
        tokens[requests, 0] = drawn.to(tokens.dtype)
        self.records.add_teacher_tokens(self._keys[lost], self._places(counts)[requests])
