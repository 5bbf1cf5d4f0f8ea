"""The rows of a step of Model Runner V2 are those of its drafts, and verify's tokens of them follow mu."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import trbext
from python_tests.vllm.sampler.fake_runner_v2 import FakeRunner, Request
from trbext import reference
from trbext.vllm.sampler.slot_layout import DraftRows, HostLayout, draft_rows, sampled

LENGTH, WIDTH, SLOTS = 3, 40, 3000
Change = Callable[[DraftRows, "Step"], DraftRows]


class Step:
    """A step of many requests with 0 to 3 drafts, which the student has drawn: the logits depend on the place only."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.bfloat16) -> None:
        generator = torch.Generator().manual_seed(seed)
        models = torch.Generator().manual_seed(1)
        self.runner = FakeRunner(slots=SLOTS + 50, draft_length=LENGTH, width=WIDTH, student_width=WIDTH, dtype=dtype)
        teacher = (2 * torch.randn(LENGTH + 1, WIDTH, generator=models)).to(dtype)
        student = (2 * torch.randn(LENGTH, WIDTH, generator=models)).to(dtype)
        self.teacher, self.student = teacher.double(), student.double()
        self.counts = torch.randint(0, LENGTH + 1, (SLOTS,), generator=generator)
        self.slots = torch.randperm(SLOTS + 50, generator=generator)[:SLOTS]
        drawn = torch.stack(
            [torch.multinomial(row.softmax(-1), SLOTS, True, generator=generator) for row in self.student], 1
        )
        self.batch = self.runner.batch(
            [
                Request(slot, drafts=drafts[:count])
                for slot, count, drafts in zip(self.slots.tolist(), self.counts.tolist(), drawn.tolist(), strict=True)
            ]
        )
        self.runner.speculator.draft_logits[self.slots] = student  # those of other slots stay NaN
        self.logits = teacher[self.batch.expanded_local_pos.long()]
        self.uniforms = torch.rand(2, len(self.logits), dtype=torch.float64, generator=generator)

    def rows(self) -> DraftRows:
        batch = self.batch
        return draft_rows(
            input_ids=batch.input_ids,
            positions=batch.positions,
            logits_indices=batch.logits_indices,
            cu_num_logits=batch.cu_num_logits,
            expanded_idx_mapping=batch.expanded_idx_mapping,
            expanded_local_pos=batch.expanded_local_pos,
            prefill_len=self.runner.req_states.prefill_len.gpu,
            draft_length=LENGTH,
        )

    def tokens(self, epsilon: float, change: Change | None = None) -> tuple[Tensor, Tensor]:
        """The tokens of verify [B, k + 1], and how many each request wrote."""
        rows = self.rows()
        if change is not None:
            rows = change(rows, self)
        n = len(rows.drafts)
        kept = trbext.verify(
            self.runner.speculator.draft_logits.flatten(0, 1),
            self.logits,
            rows.drafts,
            rows.offsets,
            epsilon,
            accept_uniform=self.uniforms[0, :n],
            draw_uniform=self.uniforms[1, :n],
            student_rows=rows.student_rows,
            teacher_rows=rows.teacher_rows,
            width=LENGTH + 1,
        )
        return kept.tokens, kept.emitted


step_of = cache(Step)


def p_values(epsilon: float, change: Change | None = None, steps: int = 6) -> list[float]:
    """Of chi-square: the token at each place of a request, against mu after that place in float64."""
    counts = torch.zeros(LENGTH + 1, WIDTH)
    for seed in range(steps):
        step = step_of(seed)
        tokens, emitted = step.tokens(epsilon, change)
        for place in range(LENGTH + 1):
            written = tokens[emitted > place, place]
            counts[place] += torch.bincount(written, minlength=WIDTH)
    law = reference.blend(step.student, step.teacher[:LENGTH], epsilon).log_probs.exp()
    found = [_p_value(counts[place], law[place]) for place in range(LENGTH)]
    return [*found, float(counts[LENGTH].sum() == 0)]  # no token comes after the drafts


def _p_value(counts: Tensor, law: Tensor) -> float:
    expected = law * counts.sum()
    rare = expected < 10
    parts = [torch.cat([part[~rare], part[rare].sum()[None]]) for part in (counts.double(), expected)]
    kept = parts[1] > 0
    return float(stats.chisquare(*(part[kept].numpy() for part in parts)).pvalue)


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.5, torch.inf])
def test_tokens_of_ragged_drafts_follow_mu(epsilon: float) -> None:
    assert min(p_values(epsilon)) * (LENGTH + 1) > 1e-3


def bonus_rows_kept(rows: DraftRows, step: Step) -> DraftRows:
    """Every row of logits as a row of verify; that of the bonus token as one without a draft."""
    batch, slots = step.batch, step.batch.expanded_idx_mapping
    last = torch.cat([batch.expanded_local_pos[1:] == 0, torch.tensor([True])])
    drafts = batch.input_ids[(batch.logits_indices + 1).clamp(max=len(batch.input_ids) - 1)].masked_fill(last, -1)
    place = batch.expanded_local_pos.clamp(max=LENGTH - 1)
    return rows._replace(
        offsets=batch.cu_num_logits,
        drafts=drafts,
        teacher_rows=torch.arange(len(slots)),
        student_rows=slots * LENGTH + place,
    )


def bonus_rows_counted(rows: DraftRows, step: Step) -> DraftRows:
    """The teacher's rows as if no request had one more."""
    return rows._replace(teacher_rows=torch.arange(len(rows.drafts)))


def offsets_of_logits(rows: DraftRows, step: Step) -> DraftRows:
    """The offsets with the extra row of each request."""
    return rows._replace(offsets=step.batch.cu_num_logits.clamp(max=len(rows.drafts)))


def drafts_a_row_too_early(rows: DraftRows, step: Step) -> DraftRows:
    """The input of each row as its draft."""
    return rows._replace(drafts=step.batch.input_ids[step.batch.logits_indices[rows.teacher_rows]])


def places_a_row_too_late(rows: DraftRows, step: Step) -> DraftRows:
    """The student's row of the draft before."""
    return rows._replace(student_rows=rows.student_rows - (rows.student_rows % LENGTH > 0).long())


@pytest.mark.parametrize(
    "change",
    [bonus_rows_kept, bonus_rows_counted, offsets_of_logits, drafts_a_row_too_early, places_a_row_too_late],
    ids=lambda change: change.__name__,
)
def test_wrong_rows_do_not_follow_mu(change: Change) -> None:
    assert min(p_values(0.05, change, steps=3)) < 1e-12


def test_rows_of_the_batch_instead_of_slots_are_not_read() -> None:
    def by_batch(rows: DraftRows, step: Step) -> DraftRows:
        request = torch.searchsorted(rows.offsets[1:].contiguous(), torch.arange(len(rows.drafts)).int(), right=True)
        return rows._replace(student_rows=request * LENGTH + rows.student_rows % LENGTH)

    assert (step_of(0).tokens(0.05, by_batch)[1] == -1).any()  # NaN of an unused slot
    assert (step_of(0).tokens(0.05)[1] >= 0).all()


def test_rows_are_those_of_a_loop_over_requests() -> None:
    runner = FakeRunner(slots=16, draft_length=LENGTH)
    requests = [
        Request(9, drafts=[21, 22]),
        Request(3),
        Request(12, written=0, reads=4),  # has been read
        Request(0, written=3, drafts=[31, 32, 33]),
        Request(7, written=0, reads=2, read=1),  # a prompt in pieces
        Request(5, written=0, reads=1, read=3, drafts=[0, 0, 0]),  # placeholders
        Request(15, written=6, reads=10),  # read again after a preemption
        Request(4, drafts=[41]),
    ]
    batch = runner.batch(requests)
    rows = draft_rows(
        input_ids=batch.input_ids,
        positions=batch.positions,
        logits_indices=batch.logits_indices,
        cu_num_logits=batch.cu_num_logits,
        expanded_idx_mapping=batch.expanded_idx_mapping,
        expanded_local_pos=batch.expanded_local_pos,
        prefill_len=runner.req_states.prefill_len.gpu,
        draft_length=LENGTH,
    )
    assert rows.offsets.tolist() == [0, 2, 2, 2, 5, 5, 8, 8, 9]
    assert rows.drafts.tolist() == [21, 22, 31, 32, 33, -1, -1, -1, 41]
    assert rows.teacher_rows.tolist() == [0, 1, 5, 6, 7, 10, 11, 12, 15]
    assert rows.student_rows.tolist() == [27, 28, 0, 1, 2, -1, -1, -1, 12]
    assert rows.undrafted.tolist() == [False, True, True, False, True, True, True, False]
    layout = HostLayout.of(batch, runner.req_states.prompt_len.np[batch.idx_mapping_np])
    assert layout.counts.tolist() == [2, 0, 0, 3, 0, 3, 0, 1]
    assert np.array_equal(layout.usable, ~rows.undrafted.numpy())
    assert np.flatnonzero(layout.held_out).tolist() == [2, 5]
    assert np.flatnonzero(layout.lost).tolist() == [1, 6]


def test_how_many_tokens_are_kept() -> None:
    emitted, accepted = torch.tensor([[2, 3, 1, 0, -1, -1, -1, 0], [1, 3, 0, 0, 0, 2, 0, 0]], dtype=torch.int32)
    cu = torch.tensor([0, 4, 8, 12, 13, 17, 21, 25, 26], dtype=torch.int32)
    seq_lens = torch.full((8,), 9, dtype=torch.int32)
    prefill = torch.tensor([4, 4, 4, 9, 4, 4, 9, 12], dtype=torch.int32)
    kept = sampled(emitted, accepted, cu, seq_lens, prefill)
    assert kept.num_sampled.tolist() == [2, 3, 1, 1, 1, 2, 1, 0]
    assert kept.num_rejected.tolist() == [2, 1, 3, 0, 3, 2, 3, 0]
    assert kept.num_sampled.dtype == kept.num_rejected.dtype == torch.int32
