"""trbext.verify against a top-k teacher decides as it would against the full teacher that the k tokens imply."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import trbext
from python_tests.operators.devices import Operators
from python_tests.operators.top_k.top_k_teachers import top_k_of
from python_tests.operators.verify_calls import Call, assert_follows_the_law, ordinary, ragged, same, three_requests
from trbext import TopK, reference, reference_top_k

INF = float("inf")


def against_top_k(call: Call, k: int) -> tuple[Call, Call]:
    """Returns the call against the k most probable tokens of each row of its teacher, and against the full teacher that
    they imply."""
    heat = torch.ones(len(call.draft_tokens), 1)
    for request in range(call.requests):
        heat[list(call.rows_of(request))] = call.temperature_of(request)
    top = top_k_of(call.teacher_logits, k, heat.double())
    kind = reference.STUDENT_KINDS.get(call.student_kind, call.student_kind)  # type: ignore[arg-type]
    numbers = call.student_logits.double()
    log_student = {0: numbers / heat, 1: numbers.log(), 2: numbers}[kind]
    implied = reference_top_k.implied_teacher(log_student, top) * heat
    return call.but(teacher_logits=top), call.but(teacher_logits=implied)


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize(("vocab", "k"), [(17, 5), (2100, 20)])
def test_every_decision_is_that_of_the_implied_teacher(trb: Operators, vocab: int, k: int, kind: int) -> None:
    epsilon, temperature = torch.tensor([0.0, 1e-3, 0.1, 1.0, INF]), torch.tensor([1.0, 0.6, 1.7, 1.0, 0.8])
    for seed in range(4):
        student, logits = ordinary(15, vocab, seed=seed, spread=1.5)
        call = ragged(student, logits, [3] * 5, seed=seed, epsilon=epsilon, temperature=temperature, kind=kind)
        top_k, dense = against_top_k(call, k)
        got, expected = top_k.by(trb.verify), top_k.by(reference_top_k.verify)
        assert_follows_the_law(dense, got)
        for exact in ("tokens", "emitted", "accepted"):
            assert torch.equal(getattr(got, exact), getattr(expected, exact)), (seed, exact)
        assert torch.allclose(got.kl.double(), expected.kl, rtol=3e-4, atol=2e-6, equal_nan=True)
        assert torch.allclose(got.log_probs.double(), expected.log_probs, atol=3e-3, equal_nan=True)


@pytest.mark.parametrize("epsilon", [0.05, INF])
def test_draft_and_replacement_together_follow_mu(trb: Operators, epsilon: float) -> None:
    """Every draft meets a grid of uniforms for its acceptance and one for the draw, weighed by pi_S of the draft."""
    vocab, grid = 6, 128
    student = torch.tensor([0.5, 2.0, -1.0, 0.0, 1.0, -3.0])
    top = TopK(torch.tensor([[3, 1, -1]]), torch.tensor([[0.55, 0.3, 0.0]]).log())
    points = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    draft, accept, draw = torch.cartesian_prod(torch.arange(vocab).double(), points, points).unbind(-1)
    rows = len(draft)
    zeros = torch.zeros(rows, dtype=torch.int64)
    got = trb.verify(
        student[None], top, draft.long(), torch.arange(rows + 1), epsilon, accept_uniform=accept, draw_uniform=draw,
        student_rows=zeros, teacher_rows=zeros, width=1,
    )  # fmt: skip
    weight = student.double().softmax(-1)[draft.long()] / grid**2
    found = torch.zeros(vocab, dtype=torch.float64).index_add(0, got.tokens[:, 0], weight)
    mu = reference_top_k.behavior_log_probs(student[None], top, got.beta[:1])[0].exp()
    assert torch.allclose(found, mu, atol=1.5 / grid)
    assert (got.accepted == 0).any()


def test_beta_and_kl_are_those_of_solve_to_the_bit(trb: Operators) -> None:
    student, logits = ordinary(8, 1500, spread=1.5)
    epsilon = torch.linspace(0, 0.3, 8)
    top = top_k_of(logits, 20)
    got = ragged(student, logits, [1] * 8, epsilon=epsilon).but(teacher_logits=top).by(trb.verify)
    beta, kl, _ = trb.solve(student, top, epsilon)
    assert torch.equal(got.beta, beta)
    assert torch.equal(got.kl, kl)


@pytest.mark.parametrize("fault", ["id", "mass", "student", "student row", "teacher row", "draft", "uniform"])
def test_a_row_at_fault_ends_its_request_only(trb: Operators, fault: str) -> None:
    call, _ = against_top_k(three_requests(), 6)
    rows = torch.arange(10)
    call = call.but(teacher_rows=rows)
    expected = call.by(trb.verify)
    ids, log_probs = (values.clone() for values in call.teacher_logits)
    if fault == "id":
        ids[4, 2] = ids[4, 1]
    elif fault == "mass":
        log_probs[4, 2] = 0.0
    else:
        changed = {
            "student": ("student_logits", torch.nan), "student row": ("student_rows", 11),
            "teacher row": ("teacher_rows", -1), "draft": ("draft_tokens", 1100), "uniform": ("accept_uniform", 1.0),
        }[fault]  # fmt: skip
        values = getattr(call, changed[0]).clone()
        values[4] = changed[1]
        call = call.but(**{changed[0]: values})
    got = call.but(teacher_logits=TopK(ids, log_probs)).by(trb.verify)
    assert got.emitted.tolist() == [int(expected.emitted[0]), -1, int(expected.emitted[2])]
    assert got.accepted[1] == 1
    assert got.beta[4].isnan()
    for request in (0, 2):
        assert torch.equal(got.tokens[request], expected.tokens[request])
    kept = torch.ones(10, dtype=torch.bool)
    kept[4:7] = False
    assert torch.equal(got.beta[kept].nan_to_num(-1), expected.beta[kept].nan_to_num(-1))


def test_rows_may_lie_anywhere_and_outputs_may_be_given(trb: Operators) -> None:
    student, logits = ordinary(9, 300)
    call, _ = against_top_k(ragged(student, logits, [3, 2, 4]), 5)
    expected = call.by(trb.verify)
    order = torch.tensor([4, 8, 0, 2, 6, 1, 3, 7, 5])
    place = order.argsort()
    moved = call.but(
        student_logits=torch.cat([student[order], student])[:, :], student_rows=place,
        teacher_logits=TopK(*(values[order].int() if i == 0 else values[order] for i, values in
                              enumerate(call.teacher_logits))), teacher_rows=place.int(),
    )  # fmt: skip
    assert same(moved.by(trb.verify), expected)


def test_out_writes_what_the_functional_form_returns() -> None:
    student, logits = ordinary(6, 50)
    call, _ = against_top_k(ragged(student, logits, [3, 3]), 5)
    expected = call.by(trbext.verify)
    outputs: dict[str, Tensor] = {
        "tokens": torch.empty(2, 3, dtype=torch.int32), "emitted": torch.empty(2, dtype=torch.int32),
        "accepted": torch.empty(2, dtype=torch.int32), "beta": torch.empty(6), "kl": torch.empty(6),
        "out_log_probs": torch.empty(2, 3, 3),
    }  # fmt: skip
    torch.ops.trb.verify_top_k.out(
        student, *call.teacher_logits, call.draft_tokens, call.offsets, torch.full((2,), 0.05), torch.ones(2),
        call.accept_uniform, call.draw_uniform, width=3, log_probs=True, **outputs,
    )  # fmt: skip
    for got, values in zip(outputs.values(), expected, strict=True):
        assert torch.equal(got.to(values.dtype).nan_to_num(7.0), values.nan_to_num(7.0))


def test_a_request_at_fault_does_not_change_the_temperature_of_another_in_the_reference(trb: Operators) -> None:
    student, logits = ordinary(3, 50)
    call = ragged(student, logits, [3], direct=0.0).but(
        teacher_logits=top_k_of(logits, 5),
        accept_uniform=torch.zeros(3, dtype=torch.float64),
        offsets=torch.tensor([0, 3, 1, 2]),  # the third request has a row of the first
        temperature=torch.tensor([1.0, 1.0, 0.2]),
    )
    got, expected = call.by(trb.verify), call.by(reference_top_k.verify)
    assert got.emitted.tolist() == expected.emitted.tolist() == [3, -1, -1]
    assert torch.allclose(got.beta.double(), expected.beta, rtol=1e-3)


def test_a_teacher_without_rows_leaves_no_row_to_the_reference_either(trb: Operators) -> None:
    student, logits = ordinary(3, 50)
    none = TopK(torch.empty(0, 5, dtype=torch.int64), torch.empty(0, 5))
    call = ragged(student, logits, [2, 1]).but(teacher_logits=none, teacher_rows=torch.arange(3))
    for verify in (trb.verify, reference_top_k.verify):
        assert call.by(verify).emitted.tolist() == [-1, -1]
