"""Draws the tokens of vLLM's Model Runner V2 from mu, where the runner would call its samplers.

**It has not been run on a GPU.** It was written against the sources of vLLM 0.32 and 0.33, and ran in vLLM 0.32 on the
CPU, whose Model Runner V2 has its Triton kernels interpreted there (`python_tests/vllm/engine/runner_v2_rollouts.py`).

A step of the runner ends in `rejection_sampler(logits, input_batch, draft_logits, invalid_drafts)`, or in
`sampler(logits, input_batch)` if no request has drafts. `logits` [N + B, V] are the teacher's. `draft_logits`
[slots, k, V] are the student's, before the temperature, from which the drafts were drawn in the step before. A model
state may return both samplers from `custom_sampler`, which the runner calls while it loads the models. Here they are
replaced afterwards, of one runner only.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

import trbext  # noqa: F401  # registers torch.ops.trb

from ..engine import check_settings_v2
from ..requests import NO_KEY
from ..versions import check_runner_v2
from .counters import Counters
from .hook import Settings
from .request_slots import RequestSlots
from .row_layout import on_device
from .slot_layout import DraftRows, HostLayout, draft_rows, sampled
from .step_records import Step, StepRecords
from .teacher_draw import draw_from_teacher
from .teacher_top import teacher_top

LOGITS = 0  # verify's student_kind
OPT_IN = "TRB_VLLM_RUNNER_V2"  # set to 1, an engine may run Model Runner V2


def is_wanted(runner: Any) -> bool:
    """Whether a model runner is not V1's, and the environment lets an engine run Model Runner V2."""
    return not hasattr(type(runner), "_sample") and os.environ.get(OPT_IN) == "1"


class TRBSampler:
    """Stands for the runner's Sampler, and is one in everything but the tokens.

    Args:
        hook: That draws them.
        stock: The runner's own.
    """

    def __init__(self, hook: HookV2, stock: Any) -> None:
        self._hook, self._stock = hook, stock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    def add_request(self, req_idx: int, sampling_params: Any) -> None:
        """Takes a request at a slot."""
        self._stock.add_request(req_idx, sampling_params)
        self._stock.sampling_states.seeds.np[req_idx] = self._hook.slots.add(req_idx, sampling_params)

    def apply_staged_writes(self) -> None:
        """Makes new requests visible on the device, before each step."""
        self._hook.slots.apply()
        self._stock.apply_staged_writes()

    def __call__(self, logits: Tensor, input_batch: Any) -> Any:
        """The tokens of a step without drafts."""
        return self._hook.sample(logits, input_batch, None)


class TRBRejectionSampler:
    """Stands for the runner's RejectionSampler, and is one in everything but the tokens.

    Args:
        hook: That draws them.
        stock: The runner's own.
    """

    def __init__(self, hook: HookV2, stock: Any) -> None:
        self._hook, self._stock = hook, stock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    def __call__(
        self, logits: Tensor, input_batch: Any, draft_logits: Tensor | None = None, invalid_drafts: Tensor | None = None
    ) -> Any:
        """The tokens of a step of which some requests have drafts.

        Raises:
            RuntimeError: The drafts are no draws from the student, or a grammar cut them.
        """
        if draft_logits is None:
            raise RuntimeError("a TRB engine needs the student's logits of its drafts, got none")
        if invalid_drafts is not None:
            raise RuntimeError("a TRB rollout follows mu only, got drafts that a grammar has cut")
        return self._hook.sample(logits, input_batch, draft_logits)


class HookV2:
    """Replaces the samplers of one Model Runner V2.

    Args:
        runner: vLLM's GPUModelRunner of `v1.worker.gpu`, or its CPUModelRunner.
        settings: Of the engine.

    Raises:
        RuntimeError: This vLLM, or the way the engine is set up, is not one with which tokens would follow mu.
    """

    def __init__(self, runner: Any, settings: Settings) -> None:
        check_runner_v2(runner)
        check_settings_v2(runner)
        self._runner, self.settings = runner, settings
        self._device: torch.device = runner.device
        self._speculator = runner.speculator
        self.draft_length: int = self._speculator.num_speculative_steps
        self.generator = torch.Generator(self._device)
        self.counters, self.records = Counters(self._device), StepRecords()
        self.slots = RequestSlots(runner.max_num_reqs, settings.epsilon, self._device)
        self.reseed(settings.seed)
        self._stock = (runner.sampler, runner.rejection_sampler, self._speculator.compute_draft_logits)
        runner.sampler = TRBSampler(self, runner.sampler)
        runner.rejection_sampler = TRBRejectionSampler(self, runner.rejection_sampler)
        self._speculator.compute_draft_logits = self.draft_logits  # of this speculator only, not of its class

    def remove(self) -> None:
        """Gives the runner its own samplers back."""
        self._runner.sampler, self._runner.rejection_sampler, _ = self._stock
        del self._speculator.compute_draft_logits

    def reseed(self, seed: int) -> None:
        """Sets the seed of the drafts of requests to come, and that of their verification."""
        self.generator.manual_seed(seed)
        self.slots.reseed(seed)

    def set_epsilon(self, epsilon: float) -> None:
        """Sets the budget of requests that name none of their own, nats per token."""
        self.slots.set_epsilon(epsilon)

    def draft_logits(self, hidden_states: Tensor, spec_step_idx: int) -> Tensor:
        """The speculator's `compute_draft_logits`, over the vocabulary that both models share."""
        logits: Tensor = self._stock[2](hidden_states, spec_step_idx)
        slots = self._speculator.idx_mapping[: logits.shape[0]]
        return self.settings.vocabulary.canonical_(logits, self._speculator.temperature[slots])

    def sample(self, logits: Tensor, batch: Any, draft_logits: Tensor | None) -> Any:
        """The tokens of a step, as the runner's SamplerOutput."""
        from vllm.v1.worker.gpu.sample.output import SamplerOutput

        # 1. What the host knows of the requests, and the numbers of each on the device.
        states, vocabulary = self._runner.req_states, self.settings.vocabulary
        layout = HostLayout.of(batch, states.prompt_len.np[batch.idx_mapping_np])
        slots = batch.idx_mapping
        temperature = self._runner.sampler.sampling_states.temperature.gpu
        if vocabulary.merged or vocabulary.cuts(logits):
            vocabulary.canonical_(logits, temperature[batch.expanded_idx_mapping])
        # 2. The tokens of verify.
        n = len(layout.counts)
        width = 1 if draft_logits is None else self.draft_length + 1
        tokens = torch.full((n, width), -1, dtype=torch.int64, device=self._device)
        emitted, accepted = (torch.zeros(n, dtype=torch.int32, device=self._device) for _ in range(2))
        if draft_logits is not None:
            rows = draft_rows(
                input_ids=batch.input_ids,
                positions=batch.positions,
                logits_indices=batch.logits_indices,
                cu_num_logits=batch.cu_num_logits,
                expanded_idx_mapping=batch.expanded_idx_mapping,
                expanded_local_pos=batch.expanded_local_pos,
                prefill_len=states.prefill_len.gpu,
                draft_length=self.draft_length,
            )
            self._verify(logits, draft_logits.flatten(0, 1), rows, layout, batch, tokens, emitted, accepted)
        # 3. A request at fault needs a token, or vLLM would not take its drafts back. It gets 0, and its client an
        # error. Requests without drafts get theirs.
        tokens[:, 0] = tokens[:, 0].clamp(min=0)
        if not layout.usable.all():
            self._without_drafts(tokens, logits, layout, batch)
        # 4. How many of them count.
        kept = sampled(emitted, accepted, batch.cu_num_logits, batch.seq_lens[:n], states.prefill_len.gpu[slots])
        return SamplerOutput(
            sampled_token_ids=tokens,
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=kept.num_sampled,
            num_rejected=kept.num_rejected,
            sampling_mask_tensors=None,
        )

    def _places(self, slots: Tensor) -> Tensor:
        """[B] the place, in the output of each request, of the first token of this step."""
        states = self._runner.req_states
        places: Tensor = states.total_len.gpu[slots] - states.prompt_len.gpu[slots]
        return places

    def _verify(
        self,
        logits: Tensor,
        student: Tensor,
        rows: DraftRows,
        layout: HostLayout,
        batch: Any,
        tokens: Tensor,
        emitted: Tensor,
        accepted: Tensor,
    ) -> None:
        """Writes the tokens of the requests that have drafts."""
        # 1. One call, on the engine's own tensors. None is gathered.
        n, total, vocabulary = len(layout.counts), len(rows.drafts), self.settings.vocabulary
        keys = self.slots.keys[batch.idx_mapping_np]
        recorded = bool((keys != NO_KEY).any())
        temperature = self._runner.sampler.sampling_states.temperature.gpu
        uniforms = torch.rand((2, total), dtype=torch.float64, device=self._device, generator=self.generator)
        _, _, _, beta, kl, log_probs = torch.ops.trb.verify.out(
            student,
            logits,
            rows.drafts,
            rows.offsets,
            self.slots.epsilon[batch.idx_mapping],
            temperature[batch.idx_mapping],
            uniforms[0],
            uniforms[1],
            student_rows=rows.student_rows,
            teacher_rows=rows.teacher_rows,
            width=tokens.shape[1],
            vocab=vocabulary.width,
            student_kind=LOGITS,
            log_probs=recorded,
            tokens=tokens,
            emitted=emitted,
            accepted=accepted,
            beta=torch.empty(total, device=self._device),
            kl=torch.empty(total, device=self._device),
            out_log_probs=torch.empty((n, tokens.shape[1], 3) if recorded else (0, 0, 3), device=self._device),
        )
        # 2. What is kept of the step.
        self.counters.add(emitted, accepted, beta, kl, None if layout.usable.all() else ~rows.undrafted)
        self.counters.steps += 1
        self.counters.row_passes += int(layout.usable.sum())
        if not recorded:
            return
        top = None
        if self.settings.top_k:
            common = student[:, : vocabulary.width] if vocabulary.cuts(student) else student
            scale = temperature[batch.expanded_idx_mapping[rows.teacher_rows]]
            top = teacher_top(logits, rows.teacher_rows, common, rows.student_rows, scale, self.settings.top_k)
        self.records.add(
            Step(
                keys=keys,
                counts=layout.counts,
                usable=layout.usable,
                start=self._places(batch.idx_mapping),
                tokens=tokens.clone(),  # the engine's copy is written to afterwards
                emitted=emitted,
                accepted=accepted,
                log_probs=log_probs,
                beta=beta,
                kl=kl,
                top=top,
            )
        )

    def _without_drafts(self, tokens: Tensor, logits: Tensor, layout: HostLayout, batch: Any) -> None:
        """Writes the tokens of the requests of which no drafts can be verified.

        A request that has just been read gives the token back that it held out. Any other has lost its drafts, so the
        teacher draws. That token does not follow mu: its place is recorded, and the client cuts the rollout there.
        """
        states, slots = self._runner.req_states, batch.idx_mapping
        begun = states.total_len.gpu[slots] == states.prompt_len.gpu[slots]
        tokens[:, 0] = torch.where(begun, self.slots.held_out[slots], tokens[:, 0])
        self.counters.held_out += int(layout.held_out.sum())
        lost = np.flatnonzero(layout.lost)
        if len(lost) == 0:
            return
        self.counters.teacher_tokens += len(lost)
        requests = on_device(lost, self._device)
        tokens[requests, 0] = draw_from_teacher(
            logits,
            batch.cu_num_logits[requests],
            self._runner.sampler.sampling_states.temperature.gpu[slots[requests]],
            torch.rand(len(lost), dtype=torch.float64, device=self._device, generator=self.generator),
        )
        self.records.add_teacher_tokens(self.slots.keys[batch.idx_mapping_np][lost], self._places(slots)[requests])
