"""trbext.verify at the edges: faults stay in their request, uses that cannot be meant raise, layouts do not matter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from devices import Operators, on
from torch import Tensor
from verify_calls import Call, assert_follows_the_law, ordinary, ragged, same

import trbext
from trbext import reference

INF, NAN = float("inf"), float("nan")
VOCAB, COUNTS = 1100, [3, 4, 2]  # rows 3 .. 6 are of request 1, which the faults are put into


def three_requests(kind: int = 0) -> Call:
    """Every draft of request 1 is accepted but the last row's, a direct one; so a fault anywhere in it is met."""
    student, teacher = ordinary(10, VOCAB, seed=5)
    epsilon = torch.tensor([0.05, 0.1, 0.3])
    temperature = torch.tensor([1.0, 0.7, 1.3])
    call = ragged(student, teacher, COUNTS, epsilon=epsilon, temperature=temperature, kind=kind, direct=0.0, padding=1)
    drafts, accept = call.draft_tokens.clone(), call.accept_uniform.clone()
    drafts[6], accept[3:6] = -1, 0.0
    rows = torch.arange(10)
    return call.but(draft_tokens=drafts, accept_uniform=accept, student_rows=rows, teacher_rows=rows.int(), width=5)


def put(name: str, place: int, value: float | int) -> Callable[[Call], Call]:
    def change(call: Call) -> Call:
        values = getattr(call, name).clone()
        values[place] = value
        return call.but(**{name: values})

    return change


def put_in_row(name: str, row: int, value: float, alone: bool = True) -> Callable[[Call], Call]:
    """In one token of the row, between masked ones (which must not hide it), or in all."""

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
    "draw uniform 1": (put("draw_uniform", 1, 1.0), 3, (0,)),
    "draw uniform NaN": (put("draw_uniform", 1, NAN), 3, (0,)),
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


def test_a_draw_uniform_that_nothing_is_drawn_by_is_not_needed(trb: Operators) -> None:
    call = three_requests()
    kept = call.but(accept_uniform=torch.zeros(10, dtype=torch.float64))
    got = put("draw_uniform", 0, NAN)(kept).by(trb.verify)
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
        ([0, 3, 2, 4], [3, -1, -1]),  # decreasing, and then row 2 is of request 0 already
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


def test_an_empty_request_is_no_fault_whatever_its_numbers(trb: Operators) -> None:
    call = three_requests().but(offsets=torch.tensor([0, 3, 3, 5]))
    for name, value in (("epsilon", NAN), ("temperature", 0.0), ("draw_uniform", NAN)):
        got = put(name, 1, value)(call).by(trb.verify)
        assert (got.emitted[1], got.accepted[1]) == (0, 0)
        assert (got.tokens[1] == -1).all()


@pytest.mark.parametrize("log_probs", [False, True])
def test_no_requests_and_no_rows(trb: Operators, log_probs: bool) -> None:
    for rows in (0, 2):
        got = Call(
            torch.zeros(rows, 7), torch.zeros(rows, 9), torch.zeros(rows, dtype=torch.int64),
            torch.zeros(1, dtype=torch.int64), 0.1, torch.zeros(rows, dtype=torch.float64),
            torch.zeros(0, dtype=torch.float64), width=3, log_probs=log_probs,
        ).by(trb.verify)  # fmt: skip
        assert got.tokens.shape == (0, 3)
        assert got.emitted.shape == got.accepted.shape == (0,)
        assert got.beta.isnan().tolist() == got.kl.isnan().tolist() == [True] * rows
        assert got.log_probs.shape == ((0, 3, 3) if log_probs else (0, 0, 3))


# ---- widths, layouts, indirection ----


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


def test_equal_rows_may_be_shared(trb: Operators) -> None:
    call = three_requests().but(student_rows=torch.zeros(10, dtype=torch.int64), teacher_rows=None)
    copied = call.but(student_logits=call.student_logits[:1].repeat(10, 1), student_rows=None)
    assert same(call.by(trb.verify), copied.by(trb.verify))
    assert_follows_the_law(call, call.by(trb.verify))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_request_does_not_know_its_batch_nor_the_threads(trb: Operators, kind: int, threads: None) -> None:
    counts = [3, 1, 0, 4, 2]
    student, teacher = ordinary(10, 5000, seed=1, spread=1.5)
    epsilon, heat = torch.tensor([0.0, 1e-3, 0.1, 0.5, INF]), torch.tensor([1.0, 0.8, 1.0, 1.5, 0.6])
    call = ragged(student, teacher, counts, epsilon=epsilon, temperature=heat, kind=kind)
    expected = call.by(trb.verify)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert same(call.by(trb.verify), expected)
        for request in range(5):  # alone, by row indirection into the same logits
            rows = torch.tensor(list(call.rows_of(request)), dtype=torch.int64)
            alone = call.but(
                draft_tokens=call.draft_tokens[rows],
                accept_uniform=call.accept_uniform[rows],
                offsets=torch.tensor([0, len(rows)]),
                student_rows=rows,
                teacher_rows=rows,
                epsilon=epsilon[request : request + 1],
                temperature=heat[request : request + 1],
                draw_uniform=call.draw_uniform[request : request + 1],
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
        draw_uniform=call.draw_uniform[order],
    ).by(trb.verify)
    assert torch.equal(permuted.tokens, expected.tokens[order])
    assert torch.equal(permuted.beta.nan_to_num(), expected.beta[rows].nan_to_num())


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


# ---- uses that raise ----


def usage(change: Callable[[Call], Call] | dict[str, object]) -> Call:
    call = three_requests().but(epsilon=torch.full((3,), 0.1), temperature=torch.ones(3))
    return change(call) if callable(change) else call.but(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_logits": torch.zeros(10)}, r"student_logits must have shape \[N, V\], got \[10\]"),
        ({"teacher_logits": torch.zeros(10, 4).double()}, "teacher_logits must be float32, float16 or bfloat16, got D"),
        ({"teacher_logits": torch.zeros(10, 0)}, r"at least one token, got .* teacher_logits \[10, 0\]"),
        ({"vocab": 1101}, r"vocab must be between 0 \(the width both models have\) and 1100, got 1101"),
        ({"vocab": -1}, "vocab must be between 0 .* got -1"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"student_kind": 3}, r"student_kind must be 0 \(logits\), 1 .*, got 3"),
        ({"draft_tokens": torch.zeros(10)}, "draft_tokens must be int32 or int64, got Float"),
        ({"draft_tokens": torch.zeros(10, 1).long()}, r"draft_tokens must have shape \[N\], got \[10, 1\]"),
        ({"offsets": torch.zeros(4, dtype=torch.int16)}, "offsets must be int32 or int64, got Short"),
        ({"offsets": torch.zeros(0).long()}, r"offsets must have shape \[B \+ 1\], got \[0\]"),
        ({"epsilon": torch.zeros(3).double()}, "epsilon must be Float, got Double"),
        ({"epsilon": torch.zeros(4)}, r"epsilon must have shape \[B\] = \[3\], got \[4\]"),
        ({"temperature": torch.ones(1)}, r"temperature must have shape \[B\] = \[3\], got \[1\]"),
        ({"accept_uniform": torch.zeros(10)}, "accept_uniform must be Double, got Float"),
        ({"accept_uniform": torch.zeros(9).double()}, r"accept_uniform must have shape \[N\] = \[10\], got \[9\]"),
        ({"draw_uniform": torch.zeros(10).double()}, r"draw_uniform must have shape \[B\] = \[3\], got \[10\]"),
        ({"student_rows": torch.zeros(9).long()}, r"student_rows must have shape \[N\] = \[10\], got \[9\]"),
        ({"teacher_rows": torch.zeros(10)}, "teacher_rows must be int32 or int64, got Float"),
        (
            {"teacher_rows": None, "teacher_logits": torch.zeros(9, VOCAB)},
            r"teacher_logits must have at least N = 10 rows where teacher_rows is not given, got \[9, 1100\]",
        ),
    ],
)
def test_errors_name_the_thing_the_requirement_and_what_was_got(
    trb: Operators, change: dict[str, object], message: str
) -> None:
    with pytest.raises(RuntimeError, match="trb::verify: .*" + message):
        usage(change).by(trb.verify)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_kind": "probs"}, r"student_kind must be one of \['logits', .*\], got 'probs'"),
        ({"epsilon": -0.1}, "epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got -0.1"),
        ({"epsilon": NAN}, "epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got nan"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0"),
        ({"temperature": INF}, "temperature must be positive and finite, got inf"),
    ],
)
def test_numbers_for_all_requests_that_could_only_be_faults_are_errors(
    trb: Operators, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        usage(change).by(trb.verify)


def test_names_and_numbers_of_the_kinds_are_the_same() -> None:
    for name, number in reference.STUDENT_KINDS.items():
        call = three_requests(number)
        assert same(call.but(student_kind=name).by(trbext.verify), call.by(trbext.verify))


# ---- outputs that the caller owns ----


def outputs_for(call: Call, tokens: torch.dtype, device: str = "cpu") -> list[Tensor]:
    rows, requests = len(call.draft_tokens), call.requests
    return [
        torch.full((requests, call.width), 99, dtype=tokens, device=device),
        *(torch.full((requests,), 99, dtype=torch.int32, device=device) for _ in "ab"),
        *(torch.full((rows,), 99.0, device=device) for _ in "ab"),
        torch.full((requests, call.width, 3), 99.0, device=device),
    ]


NAMES = ("tokens", "emitted", "accepted", "beta", "kl", "out_log_probs")


def verify_into(call: Call, outputs: list[Tensor], device: str = "cpu") -> tuple[Tensor, ...]:
    def arguments(*values: object, **options: object) -> tuple[Tensor, ...]:
        return torch.ops.trb.verify.out(  # type: ignore[no-any-return]
            *(on(device, value) for value in values),  # type: ignore[arg-type]
            **{name: on(device, v) if isinstance(v, Tensor) else v for name, v in options.items()},
            **dict(zip(NAMES, outputs, strict=True)),
        )

    return call.by(arguments)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_outputs_of_the_caller(trb: Operators, dtype: torch.dtype) -> None:
    if trb.interpreted:
        pytest.skip("the interpreter has no tensors of its own to write into")
    call = usage({})
    outputs = outputs_for(call, dtype, trb.device)
    addresses = [output.data_ptr() for output in outputs]
    returned = verify_into(call, outputs, trb.device)
    assert [output.data_ptr() for output in returned] == addresses
    tokens, *rest = (output.cpu() for output in outputs)
    assert tokens.dtype == dtype
    expected = call.by(trb.verify)
    assert same(reference.Verification(tokens.long(), *rest), expected)


@pytest.mark.parametrize(
    ("place", "output", "message"),
    [
        (0, torch.zeros(3, 5), "output tokens must be Int or Long, got Float"),
        (0, torch.zeros(3, 4).long(), r"output tokens must have shape \[3, 5\], got \[3, 4\]"),
        (0, torch.zeros(3, 10).long()[:, ::2], "output tokens must be contiguous"),
        (1, torch.zeros(3).long(), "output emitted must be Int, got Long"),
        (2, torch.zeros(4).int(), r"output accepted must have shape \[3\], got \[4\]"),
        (3, torch.zeros(10).double(), "output beta must be Float, got Double"),
        (4, torch.zeros(9), r"output kl must have shape \[10\], got \[9\]"),
        (5, torch.zeros(3, 5, 2), r"output log_probs must have shape \[3, 5, 3\], got \[3, 5, 2\]"),
    ],
)
def test_outputs_that_do_not_fit_are_errors(place: int, output: Tensor, message: str) -> None:
    call = usage({})
    outputs = outputs_for(call, torch.int64)
    outputs[place] = output
    with pytest.raises(RuntimeError, match="trb::verify: " + message):
        verify_into(call, outputs)


def test_log_probs_that_are_not_wanted_must_have_no_place() -> None:
    call = usage({"log_probs": False})
    outputs = outputs_for(call, torch.int64)
    with pytest.raises(RuntimeError, match=r"log_probs must have no element where log_probs=False, got shape \[3, 5"):
        verify_into(call, outputs)
    outputs[5] = torch.empty(0)
    assert torch.equal(verify_into(call, outputs)[0], usage({}).by(trbext.verify).tokens)


# ---- what it leaves alone ----


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
        torch.arange(0, rows + 1, 4), 1e-4, accept_uniform=z, draw_uniform=z[::4], width=4, student_kind=kind)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for kind in (0, 1, 2):
    call(4, kind)
before = peak()
for kind in (0, 1, 2):
    call(rows, kind)
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_does_not_grow_with_rows_times_vocabulary() -> None:
    """A copy of the rows would take 29 MB; they are expanded from one."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 4, run.stdout
