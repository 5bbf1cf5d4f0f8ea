"""Records give each token of a recorded rollout its own numbers, and leave out what no rollout may take."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from trbext.vllm.requests import NO_KEY
from trbext.vllm.sampler.step_records import Step, StepRecords
from trbext.vllm.sampler.teacher_top import TeacherTop
from trbext.vllm.worker import WorkerExtension


def step(
    keys: list[int], counts: list[int], emitted: list[int], *, start: list[int], usable: list[bool] | None = None
) -> Step:
    """Returns a step whose numbers name their request (hundreds) and row."""
    requests, width = len(keys), max(counts) + 1
    rows = torch.tensor([100.0 * r + j for r in range(requests) for j in range(counts[r])])
    slots = torch.tensor([[100.0 * r + j for j in range(width)] for r in range(requests)])
    return Step(
        keys=np.array(keys, np.int64),
        counts=np.array(counts, np.int64),
        usable=np.array(usable or [True] * requests),
        start=torch.tensor(start, dtype=torch.int32),
        tokens=slots.int(),
        emitted=torch.tensor(emitted, dtype=torch.int32),
        accepted=torch.tensor([max(0, e - 1) for e in emitted], dtype=torch.int32),
        log_probs=torch.stack([slots + 0.1, slots + 0.2, slots + 0.3], -1),
        beta=rows + 0.4,
        kl=rows + 0.5,
        top=TeacherTop(rows[:, None].int(), rows[:, None] + 0.6, rows + 0.7),
    )


def test_each_token_has_the_numbers_of_its_row_and_slot() -> None:
    records = StepRecords()
    records.add(step([7, 3], [3, 2], [2, 1], start=[1, 5]))
    records.add(step([3], [3], [3], start=[6]))
    taken = records.take()
    assert taken["key"].tolist() == [7, 7, 3, 3, 3, 3]
    assert taken["index"].tolist() == [1, 2, 5, 6, 7, 8]
    own = np.array([0, 1, 100, 0, 1, 2], np.float32)
    assert taken["token"].tolist() == own.tolist()
    for name, part in (
        ("student_log_prob", 0.1),
        ("teacher_log_prob", 0.2),
        ("log_prob", 0.3),
        ("beta", 0.4),
        ("kl", 0.5),
        ("rest_log_prob", 0.7),
    ):
        np.testing.assert_allclose(taken[name], own + np.float32(part), rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(taken["top_log_prob"][:, 0], own + np.float32(0.6), rtol=1e-6)
    assert taken["top_ids"][:, 0].tolist() == own.tolist()


def test_tokens_without_a_key_or_without_the_student_s_rows_are_left_out() -> None:
    records = StepRecords()
    records.add(step([NO_KEY, 4, 5], [2, 2, 2], [2, 2, 1], start=[1, 1, 1], usable=[True, False, True]))
    assert records.take()["key"].tolist() == [5]


def test_a_request_at_fault_keeps_the_tokens_before_the_fault_and_is_named() -> None:
    records = StepRecords()
    one = step([4, 6], [3, 2], [-1, -1], start=[5, 1], usable=[True, False])
    one.accepted[0] = 2
    records.add(one)
    taken = records.take()
    assert taken["key"].tolist() == [4, 4]
    assert taken["fault_key"].tolist() == [4]  # request 6 has no rows of its own, which is no fault of its logits
    assert taken["fault_index"].tolist() == [7]


def test_what_was_taken_is_gone() -> None:
    records = StepRecords()
    records.add(step([1], [2], [2], start=[1]))
    records.add_teacher_tokens(np.array([1, NO_KEY]), torch.tensor([3, 4]))
    first, second = records.take(), records.take()
    assert (len(first["key"]), first["teacher_key"].tolist(), first["teacher_index"].tolist()) == (2, [1, -1], [3, 4])
    assert (len(second["key"]), len(second["teacher_key"]), len(second["fault_key"])) == (0, 0, 0)


@pytest.mark.parametrize(
    ("rank", "workers", "gives"),
    [(0, 1, True), (1, 1, True), (0, 2, True), (1, 2, False), (2, 2, True)],  # rank 1 of 1: of a second process
)
def test_the_first_worker_of_every_engine_gives_the_records(rank: int, workers: int, gives: bool) -> None:
    worker = WorkerExtension()
    worker.rank, worker.vllm_config = rank, SimpleNamespace(parallel_config=SimpleNamespace(world_size=workers))
    records = SimpleNamespace(take=lambda: {"key": np.array([3])})
    worker.model_runner = SimpleNamespace(_trb_hook=SimpleNamespace(records=records))
    answer = worker.trb_take_records()
    assert (answer is not None) == gives
    assert answer is None or load(answer)["key"].tolist() == [3]
