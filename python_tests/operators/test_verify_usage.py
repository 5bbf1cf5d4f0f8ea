"""trbext.verify raises if a use cannot be meant, and writes to outputs that the caller owns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import trbext
from python_tests.operators.devices import Operators, on
from python_tests.operators.verify_calls import VOCAB, Call, same, three_requests
from trbext import reference

INF, NAN = float("inf"), float("nan")


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
        ({"width": 0}, "width must be at least 1 .*, got 0"),
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
        ({"draw_uniform": torch.zeros(3).double()}, r"draw_uniform must have shape \[N\] = \[10\], got \[3\]"),
        ({"student_rows": torch.zeros(9).long()}, r"student_rows must have shape \[N\] = \[10\], got \[9\]"),
        ({"teacher_rows": torch.zeros(10)}, "teacher_rows must be int32 or int64, got Float"),
        (
            {"teacher_rows": None, "teacher_logits": torch.zeros(9, VOCAB)},
            r"teacher_logits must have at least N = 10 rows if teacher_rows is not given, got \[9, 1100\]",
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
        ({"temperature": 0.0}, "temperature must be between 1e-6 and 1e6, got 0"),
        ({"temperature": INF}, "temperature must be between 1e-6 and 1e6, got inf"),
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
    with pytest.raises(RuntimeError, match=r"log_probs must have no element if log_probs=False, got shape \[3, 5"):
        verify_into(call, outputs)
    outputs[5] = torch.empty(0)
    assert torch.equal(verify_into(call, outputs)[0], usage({}).by(trbext.verify).tokens)
