"""Imitates vLLM's Model Runner V2 on the CPU: tensors at request slots, laid out as the runner lays out its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from python_tests.vllm.versions.vllm_sources import install, write_sources
from trbext.vllm.interface import V2_USES
from trbext.vllm.requests import EPSILON, HELD_OUT, KEY

PADDING = 5  # inputs past those of the step, as a CUDA graph has them


@dataclass
class SamplerOutput:
    """vLLM's, of `v1.worker.gpu.sample.output`."""

    sampled_token_ids: Tensor
    logprobs_tensors: Any
    num_nans: Any
    num_sampled: Tensor
    num_rejected: Tensor
    sampling_mask_tensors: Any = None


def install_vllm(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes `import vllm` find all that the adapter uses."""
    write_sources(V2_USES, folder / "vllm")
    install(monkeypatch, folder / "vllm")
    name = "vllm.v1.worker.gpu.sample.output"
    module: Any = ModuleType(name)
    module.SamplerOutput = SamplerOutput
    monkeypatch.setitem(sys.modules, name, module)


class Backed:
    """A UvaBackedTensor: what is written to `np` is on the device after `copy_to_uva`."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.cpu = torch.zeros(size, dtype=dtype)
        self.np = self.cpu.numpy()
        self.gpu = self.cpu.clone()

    def copy_to_uva(self) -> None:
        self.gpu = self.cpu.clone()


def parameters(
    held_out: int = 0, *, key: int | None = None, epsilon: float | None = None, temperature: float = 1.0, **others: Any
) -> SimpleNamespace:
    """SamplingParams of a request."""
    extra = {HELD_OUT: held_out, KEY: key, EPSILON: epsilon}
    extra = {name: value for name, value in extra.items() if value is not None}
    return SimpleNamespace(temperature=temperature, extra_args=extra, **others)


class StockSampler:
    """The runner's Sampler, which must not sample."""

    def __init__(self, slots: int) -> None:
        self.sampling_states = SimpleNamespace(
            temperature=Backed(slots, torch.float32), seeds=Backed(slots, torch.int64)
        )
        self.return_sampling_mask = False
        self.added: list[int] = []

    def add_request(self, req_idx: int, sampling_params: Any) -> None:
        self.added.append(req_idx)
        self.sampling_states.temperature.np[req_idx] = sampling_params.temperature

    def apply_staged_writes(self) -> None:
        self.sampling_states.temperature.copy_to_uva()
        self.sampling_states.seeds.copy_to_uva()

    def __call__(self, logits: Tensor, input_batch: Any) -> Any:
        raise AssertionError("the stock sampler was called")


class Speculator:
    """The runner's DraftModelSpeculator."""

    def __init__(self, slots: int, draft_length: int, width: int, dtype: torch.dtype) -> None:
        self.num_speculative_steps = draft_length
        self.draft_logits = torch.full((slots, draft_length, width), torch.nan, dtype=dtype)
        self.temperature = torch.ones(slots)
        self.idx_mapping = torch.full((slots,), -1)
        self.max_model_len = 64

    def compute_draft_logits(self, hidden_states: Tensor, spec_step_idx: int) -> Tensor:
        return hidden_states.clone()


@dataclass
class Request:
    """One request of a step: what it has been read with and written, and what is scheduled of it."""

    slot: int
    prompt: int = 4  # tokens
    written: int = 1  # tokens before this step, of which the held-out one is the first
    drafts: Sequence[int] = ()
    reads: int = (
        0  # tokens that are read in this step, of its prompt or, after a preemption, of all it has; 0: it writes
    )
    read: int = 0  # tokens of them that were read before


@dataclass
class FakeRunner:
    """Model Runner V2, without models.

    Args:
        slots: Of requests.
        draft_length: k.
        width: Of the teacher's logits.
        student_width: Of the student's.
        dtype: Of both.
    """

    slots: int = 64
    draft_length: int = 3
    width: int = 40
    student_width: int = 40
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        self.sampler: Any = StockSampler(self.slots)
        self.rejection_sampler: Any = SimpleNamespace(enable_adaptive_verification=False)
        self.speculator = Speculator(self.slots, self.draft_length, self.student_width, self.dtype)
        self.req_states = SimpleNamespace(
            prompt_len=Backed(self.slots, torch.int32),
            prefill_len=Backed(self.slots, torch.int32),
            total_len=Backed(self.slots, torch.int32),
        )
        self.max_num_reqs, self.max_model_len = self.slots, 64
        self.batch_sharder = self.adaptive_verification = self.pcp_manager = self.model = None
        self.vllm_config = SimpleNamespace(watermark_config=None)
        self.scheduler_config = self.parallel_config = SimpleNamespace()
        self.speculative_config = SimpleNamespace(num_speculative_tokens_per_batch_size=None)

    def get_draft_model(self) -> None:
        return None

    def add(self, slot: int, sampling_params: Any) -> None:
        """A new request, as `add_requests` takes it."""
        self.sampler.add_request(slot, sampling_params)
        self.sampler.apply_staged_writes()

    def batch(self, requests: Sequence[Request]) -> SimpleNamespace:
        """The InputBatch of a step, and the states at the slots of its requests."""
        rows: list[tuple[list[int], list[int], int]] = []  # per request: inputs, places, how many logits
        states = self.req_states
        reading, computed, scheduled, prefills = [], [], [], []
        for one in requests:
            has = one.prompt + one.written
            reads = one.reads > 0
            prefill = has if reads else one.prompt  # a preempted request is read with what it had written
            start = one.read if reads else has - 1
            last = [7] * one.reads if reads else [11]
            inputs = [*last, *one.drafts]
            logits = len(one.drafts) + 1
            rows.append((inputs, list(range(start, start + len(inputs))), logits))
            for name, value in (("prompt_len", one.prompt), ("prefill_len", prefill), ("total_len", has)):
                getattr(states, name).np[one.slot] = value
            reading.append(reads)
            computed.append(min(start, prefill))
            scheduled.append(len(inputs))
            prefills.append(prefill)
        for state in vars(states).values():
            state.copy_to_uva()
        lengths = np.array([len(inputs) for inputs, _, _ in rows])
        counts = np.array([logits for _, _, logits in rows])
        ends = np.cumsum(lengths)
        cu = np.concatenate([[0], np.cumsum(counts)])
        slots = np.array([one.slot for one in requests])
        local = np.concatenate([np.arange(n) for n in counts])
        indices = np.repeat(ends - counts, counts) + local
        drafts = counts - 1
        inputs, places = ([one for row in rows for one in row[part]] + [3] * PADDING for part in (0, 1))
        return SimpleNamespace(
            num_reqs=len(requests),
            idx_mapping=torch.from_numpy(slots),
            idx_mapping_np=slots,
            expanded_idx_mapping=torch.from_numpy(np.repeat(slots, counts)),
            expanded_local_pos=torch.from_numpy(local).int(),
            num_draft_tokens_per_req=drafts.astype(np.int32) if drafts.any() else None,
            num_scheduled_tokens=np.array(scheduled, np.int32),
            num_computed_prefill_tokens_np=np.array(computed, np.int32),
            prefill_len_np=np.array(prefills, np.int32),
            is_prefilling_np=np.array(reading),
            seq_lens=torch.tensor([p[-1] + 1 for _, p, _ in rows] + [0, 0], dtype=torch.int32),
            input_ids=torch.tensor(inputs, dtype=torch.int32),
            positions=torch.tensor(places),
            logits_indices=torch.from_numpy(indices),
            cu_num_logits=torch.from_numpy(cu).int(),
        )

    def step(self, logits: Tensor, batch: Any) -> SamplerOutput:
        """What the runner's `sample` does with the logits of a step."""
        output: SamplerOutput
        if batch.num_draft_tokens_per_req is None:
            output = self.sampler(logits, batch)
        else:
            output = self.rejection_sampler(logits, batch, self.speculator.draft_logits, None)
        return output
