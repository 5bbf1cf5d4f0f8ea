"""The result of trbext.verify does not depend on the layout of its inputs, on other requests, or on threads.

verify only reads its inputs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from python_tests.operators.devices import Operators
from python_tests.operators.verify_calls import (
    VOCAB,
    assert_follows_the_law,
    ordinary,
    put,
    ragged,
    same,
    three_requests,
)

INF, NAN = float("inf"), float("nan")


@pytest.mark.on_ptx
def test_models_of_differing_width_meet_on_the_common_columns(trb: Operators) -> None:
    call = three_requests()
    wide = call.but(teacher_logits=torch.cat([call.teacher_logits, torch.full((10, 70), NAN)], 1))
    assert same(wide.by(trb.verify), call.by(trb.verify))
    padded = torch.cat([call.student_logits, torch.full((10, 5), 9.0)], 1)
    assert same(wide.but(student_logits=padded, vocab=VOCAB).by(trb.verify), call.by(trb.verify))
    narrow = call.but(vocab=50, draft_tokens=call.draft_tokens.clamp(max=49))
    sliced = narrow.but(student_logits=call.student_logits[:, :50], teacher_logits=call.teacher_logits[:, :50], vocab=0)
    assert same(narrow.by(trb.verify), sliced.by(trb.verify))
    assert put("draft_tokens", 3, 50)(narrow).by(trb.verify).emitted[1] == -1


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("vocab", [17, 5000])
def test_layout_and_indirection_do_not_change_a_bit(trb: Operators, vocab: int, kind: int) -> None:
    student, teacher = ordinary(12, vocab, seed=vocab, spread=1.5)
    call = ragged(student, teacher, [3, 0, 4, 3], epsilon=0.1, kind=kind, padding=2)
    expected = call.by(trb.verify)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(12, generator=generator)
    shuffled = torch.full((40, vocab), NAN)
    shuffled[3 * order] = call.student_logits
    wide = torch.full((12, 2 * vocab + 3), NAN)
    wide[:, 1 : 2 * vocab : 2] = call.teacher_logits

    def every_other(values: Tensor) -> Tensor:
        return torch.stack([values, values], -1).reshape(-1)[::2]

    for variant in (
        call.but(student_logits=shuffled, student_rows=3 * order),
        call.but(student_logits=shuffled, student_rows=every_other((3 * order).int())),
        call.but(teacher_logits=wide[:, 1 : 2 * vocab : 2]),
        call.but(student_logits=call.student_logits.t().contiguous().t()),
        call.but(draft_tokens=call.draft_tokens.int(), offsets=call.offsets.int()),
        call.but(draft_tokens=every_other(call.draft_tokens), offsets=every_other(call.offsets)),
        call.but(accept_uniform=every_other(call.accept_uniform), draw_uniform=every_other(call.draw_uniform)),
        call.but(epsilon=torch.full((1,), 0.1).expand(4), temperature=torch.ones(4)),
    ):
        assert same(variant.by(trb.verify), expected)


@pytest.mark.on_ptx
def test_equal_rows_may_be_shared(trb: Operators) -> None:
    call = three_requests().but(student_rows=torch.zeros(10, dtype=torch.int64), teacher_rows=None)
    copied = call.but(student_logits=call.student_logits[:1].repeat(10, 1), student_rows=None)
    assert same(call.by(trb.verify), copied.by(trb.verify))
    assert_follows_the_law(call, call.by(trb.verify))


@pytest.mark.parametrize("kind", [0, 1])
def test_a_request_does_not_depend_on_its_batch_or_the_threads(trb: Operators, kind: int, threads: None) -> None:
    counts = [3, 1, 0, 4, 2]
    student, teacher = ordinary(10, 5000, seed=1, spread=1.5)
    epsilon, heat = torch.tensor([0.0, 1e-3, 0.1, 0.5, INF]), torch.tensor([1.0, 0.8, 1.0, 1.5, 0.6])
    call = ragged(student, teacher, counts, epsilon=epsilon, temperature=heat, kind=kind)
    expected = call.by(trb.verify)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert same(call.by(trb.verify), expected)
        for request in range(5):  # by itself, by row indirection into the same logits
            rows = torch.tensor(list(call.rows_of(request)), dtype=torch.int64)
            alone = call.but(
                draft_tokens=call.draft_tokens[rows],
                accept_uniform=call.accept_uniform[rows],
                offsets=torch.tensor([0, len(rows)]),
                student_rows=rows,
                teacher_rows=rows,
                epsilon=epsilon[request : request + 1],
                temperature=heat[request : request + 1],
                draw_uniform=call.draw_uniform[rows],
            ).by(trb.verify)
            part = slice(request, request + 1)
            assert same(
                alone,
                expected._replace(
                    tokens=expected.tokens[part],
                    emitted=expected.emitted[part],
                    accepted=expected.accepted[part],
                    log_probs=expected.log_probs[part],
                    beta=expected.beta[rows],
                    kl=expected.kl[rows],
                ),
            )
    order = [4, 2, 0, 3, 1]
    rows = torch.tensor([row for request in order for row in call.rows_of(request)])
    permuted = call.but(
        draft_tokens=call.draft_tokens[rows],
        accept_uniform=call.accept_uniform[rows],
        student_rows=rows,
        teacher_rows=rows,
        offsets=torch.tensor([0, *torch.tensor([counts[r] for r in order]).cumsum(0).tolist()]),
        epsilon=epsilon[order],
        temperature=heat[order],
        draw_uniform=call.draw_uniform[rows],
    ).by(trb.verify)
    assert torch.equal(permuted.tokens, expected.tokens[order])
    assert torch.equal(permuted.beta.nan_to_num(), expected.beta[rows].nan_to_num())


def test_inputs_are_only_read(trb: Operators) -> None:
    call = three_requests(1)
    tensors = {name: value for name, value in vars(call).items() if isinstance(value, Tensor)}
    before = {name: (value.clone(), value._version) for name, value in tensors.items()}
    call.by(trb.verify)
    for name, (value, version) in before.items():
        assert torch.equal(tensors[name], value), name
        assert tensors[name]._version == version, name


MEMORY = """
import resource, torch, trbext
torch.set_num_threads(1)
rows, vocab = 48, 150_000
def call(rows, kind):
    row = torch.rand(1, vocab, dtype=torch.float32)
    z = torch.zeros(rows, dtype=torch.float64)
    return trbext.verify((row / row.sum()).expand(rows, vocab), row.expand(rows, vocab), torch.zeros(rows).long(),
        torch.arange(0, rows + 1, 4), 1e-4, accept_uniform=z, draw_uniform=z, width=4, student_kind=kind)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for kind in (0, 1, 2):
    call(4, kind)
before = peak()
for kind in (0, 1, 2):
    call(rows, kind)
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_does_not_grow_with_rows_times_vocabulary(tmp_path: Path) -> None:
    """A copy of the rows would need 29 MB; they are expanded from one."""
    run = subprocess.run([sys.executable, "-c", MEMORY], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 4, run.stdout
