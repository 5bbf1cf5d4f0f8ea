"""Tests trbext.verify at the edges: a fault stays in its request, and a value that is not needed is no fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from python_tests.operators.devices import Operators
from python_tests.operators.verify_calls import VOCAB, Call, put, same, three_requests
from trbext import reference

INF, NAN = float("inf"), float("nan")


def put_in_row(name: str, row: int, value: float, alone: bool = True) -> Callable[[Call], Call]:
    """Puts a value in one token of the row, between masked ones (which must not hide it), or in all."""

    def change(call: Call) -> Call:
        values = getattr(call, name).clone()
        if alone:
            values[row, 1024:] = 0.0 if name == "student_logits" and call.student_kind == 1 else -INF
            values[row, 1050] = value
        else:
            values[row, :] = value
        return call.but(**{name: values})

    return change


FAULTS = {  # name -> (change, accepted before it, kinds of student)
    "student NaN": (put_in_row("student_logits", 5, NAN), 2, (0, 1, 2)),
    "student +inf": (put_in_row("student_logits", 4, INF), 1, (0, 1, 2)),
    "student nothing finite": (put_in_row("student_logits", 3, -INF, alone=False), 0, (0, 2)),
    "student -inf probability": (put_in_row("student_logits", 4, -INF), 1, (1,)),
    "student negative probability": (put_in_row("student_logits", 4, -1e-30), 1, (1,)),
    "student no probability": (put_in_row("student_logits", 5, 0.0, alone=False), 2, (1,)),
    "teacher NaN": (put_in_row("teacher_logits", 6, NAN), 3, (0, 1)),
    "teacher +inf": (put_in_row("teacher_logits", 5, INF), 2, (0, 1)),
    "teacher nothing finite": (put_in_row("teacher_logits", 4, -INF, alone=False), 1, (0, 1)),
    "draft below -1": (put("draft_tokens", 4, -2), 1, (0,)),
    "draft beyond the vocabulary": (put("draft_tokens", 5, VOCAB), 2, (0,)),
    "draft far beyond": (put("draft_tokens", 5, 2**40 + 3), 2, (0,)),
    "accept uniform 1": (put("accept_uniform", 3, 1.0), 0, (0,)),
    "accept uniform negative": (put("accept_uniform", 4, -1e-300), 1, (0,)),
    "accept uniform NaN": (put("accept_uniform", 5, NAN), 2, (0,)),
    "draw uniform 1": (put("draw_uniform", 6, 1.0), 3, (0,)),
    "draw uniform NaN": (put("draw_uniform", 6, NAN), 3, (0,)),
    "student row negative": (put("student_rows", 4, -1), 1, (0,)),
    "student row beyond": (put("student_rows", 5, 10), 2, (0,)),
    "teacher row negative": (put("teacher_rows", 3, -(2**31)), 0, (0,)),
    "teacher row beyond": (put("teacher_rows", 6, 10), 3, (0,)),
    "epsilon negative": (put("epsilon", 1, -1e-9), 0, (0,)),
    "epsilon NaN": (put("epsilon", 1, NAN), 0, (0,)),
    "temperature 0": (put("temperature", 1, 0.0), 0, (0, 1, 2)),
    "temperature negative": (put("temperature", 1, -1.0), 0, (0,)),
    "temperature NaN": (put("temperature", 1, NAN), 0, (0,)),
    "temperature inf": (put("temperature", 1, INF), 0, (0, 1)),
    "more rows than width": (lambda call: call.but(width=3), 0, (0,)),
}


@pytest.mark.parametrize(("fault", "kind"), [(name, kind) for name, (_, _, kinds) in FAULTS.items() for kind in kinds])
def test_a_fault_stays_in_its_request(trb: Operators, fault: str, kind: int) -> None:
    change, accepted, _ = FAULTS[fault]
    clean, call = three_requests(kind).by(trb.verify), change(three_requests(kind))
    got, expected = call.by(trb.verify), call.by(reference.verify)
    assert clean.emitted[1] == 4
    assert (got.emitted[1], got.accepted[1]) == (-1, accepted)
    assert torch.equal(got.tokens[1, :accepted], clean.tokens[1, :accepted])
    assert (got.tokens[1, accepted:] == -1).all()
    assert got.log_probs[1, accepted:].isnan().all()
    assert torch.equal(got.log_probs[1, :accepted], clean.log_probs[1, :accepted])
    assert torch.equal(got.beta[3 : 3 + accepted], clean.beta[3 : 3 + accepted])
    assert got.beta[3 + accepted : 7].isnan().all()
    assert got.kl[3 + accepted : 7].isnan().all()
    width = call.width
    for other, rows in ((0, slice(0, 3)), (2, slice(7, 9))):
        for name in ("tokens", "emitted", "accepted", "log_probs"):
            was, now = getattr(clean, name)[other], getattr(got, name)[other]
            if name in ("tokens", "log_probs"):
                was = was[:width]
            assert torch.equal(now.nan_to_num(), was.nan_to_num()), name
        for name in ("beta", "kl"):
            assert torch.equal(getattr(got, name)[rows].nan_to_num(), getattr(clean, name)[rows].nan_to_num())
    for name in ("tokens", "emitted", "accepted"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    assert torch.equal(got.beta.isnan(), expected.beta.isnan())


@pytest.mark.on_ptx
def test_a_fault_after_the_stop_is_not_met(trb: Operators) -> None:
    call = three_requests()
    call = put("draft_tokens", 4, -1)(call)  # request 1 ends at row 4
    clean = call.by(trb.verify)
    assert clean.emitted[1] == 2
    for change in (
        put("draft_tokens", 5, VOCAB),
        put("accept_uniform", 5, NAN),
        put("accept_uniform", 4, NAN),  # a direct row needs none
        put("student_rows", 6, -1),
        put_in_row("student_logits", 5, NAN),
        put_in_row("teacher_logits", 6, INF),
    ):
        assert same(change(call).by(trb.verify), clean)


@pytest.mark.on_ptx
def test_a_draw_uniform_that_nothing_is_drawn_by_is_not_needed(trb: Operators) -> None:
    call = three_requests()
    kept = call.but(accept_uniform=torch.zeros(10, dtype=torch.float64))
    got = kept.but(draw_uniform=torch.full((10,), NAN, dtype=torch.float64)).by(trb.verify)
    assert got.emitted[0] == got.accepted[0] == 3


@pytest.mark.parametrize(
    ("offsets", "emitted"),
    [
        ([0, 3, 7, 9], [3, 4, 2]),
        ([0, 3, 3, 5], [3, 0, 2]),
        ([0, 0, 0, 0], [0, 0, 0]),
        ([2, 3, 7, 9], [1, 4, 2]),  # rows before the first request are nobody's
        ([-1, 3, 7, 9], [-1, 4, 2]),
        ([0, 3, 7, 11], [3, 4, -1]),  # ten rows
        ([0, 12, 12, 12], [-1, -1, -1]),
        ([0, 3, 2, 4], [3, -1, -1]),  # decreasing, and then row 2 belongs to request 0 already
        ([0, 4, 1, 9], [4, -1, -1]),
        ([0, 12, 3, 5], [-1, -1, 2]),
        ([0, -5, 3, 5], [-1, -1, 2]),
        ([0, 2**40, 3, 5], [-1, -1, 2]),
    ],
)
def test_offsets_that_make_no_request(trb: Operators, offsets: list[int], emitted: list[int]) -> None:
    call = three_requests()
    call = call.but(
        draft_tokens=call.draft_tokens.clamp(min=0),
        accept_uniform=torch.zeros(10, dtype=torch.float64),
        epsilon=0.05,
        temperature=1.0,
        offsets=torch.tensor(offsets),
    )
    got, expected = call.by(trb.verify), call.by(reference.verify)
    assert got.emitted.tolist() == expected.emitted.tolist() == emitted
    assert torch.equal(got.tokens, expected.tokens)
    assert torch.equal(got.beta.isnan(), expected.beta.isnan())


@pytest.mark.on_ptx
def test_an_empty_request_is_no_fault_whatever_its_numbers(trb: Operators) -> None:
    call = three_requests().but(offsets=torch.tensor([0, 3, 3, 5]))
    for name, value in (("epsilon", NAN), ("temperature", 0.0)):
        got = put(name, 1, value)(call).by(trb.verify)
        assert (got.emitted[1], got.accepted[1]) == (0, 0)
        assert (got.tokens[1] == -1).all()


@pytest.mark.on_ptx
@pytest.mark.parametrize("log_probs", [False, True])
def test_no_requests_and_no_rows(trb: Operators, log_probs: bool) -> None:
    for rows in (0, 2):
        got = Call(
            torch.zeros(rows, 7), torch.zeros(rows, 9), torch.zeros(rows, dtype=torch.int64),
            torch.zeros(1, dtype=torch.int64), 0.1, torch.zeros(rows, dtype=torch.float64),
            torch.zeros(rows, dtype=torch.float64), width=3, log_probs=log_probs,
        ).by(trb.verify)  # fmt: skip
        assert got.tokens.shape == (0, 3)
        assert got.emitted.shape == got.accepted.shape == (0,)
        assert got.beta.isnan().tolist() == got.kl.isnan().tolist() == [True] * rows
        assert got.log_probs.shape == ((0, 3, 3) if log_probs else (0, 0, 3))


@pytest.mark.on_ptx
def test_finite_logits_of_any_size_stay_finite_when_multiplied_back(trb: Operators) -> None:
    """Kind 2 at T = 3: the lowest finite number is a mask, and the largest is no fault."""
    largest = torch.finfo(torch.float32).max
    student = torch.tensor([[0.0, -largest, 0.3, 0.1], [largest, 0.0, 0.0, -largest]])
    call = Call(
        student, torch.zeros(2, 4), torch.tensor([2, 0]), torch.tensor([0, 1, 2]), 0.01,
        torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64),
        width=1, temperature=3.0, student_kind=2,
    )  # fmt: skip
    got = call.by(trb.verify)
    assert got.emitted.tolist() == [1, 1]
    assert got.tokens[:, 0].tolist() == [2, 0]
