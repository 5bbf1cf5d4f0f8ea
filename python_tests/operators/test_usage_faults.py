"""Lists calls that cannot be meant: a kernel refuses each in the same words, whether it computes or only traces."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import trbext

Arguments = dict[str, Any]


class Fault(NamedTuple):
    operator: str
    change: Callable[[], Arguments]  # made anew for each test
    message: str


def pair(**change: Any) -> Arguments:
    return {"student_logits": torch.zeros(3, 5), "teacher_logits": torch.zeros(3, 5), "epsilon": 0.1, **change}


def verified(**change: Any) -> Arguments:
    return {
        "student_logits": torch.zeros(4, 5),
        "teacher_logits": torch.zeros(4, 6),
        "draft_tokens": torch.zeros(4, dtype=torch.int64),
        "offsets": torch.tensor([0, 2, 4]),
        "epsilon": torch.ones(2),
        "temperature": torch.ones(2),
        "accept_uniform": torch.zeros(4, dtype=torch.float64),
        "draw_uniform": torch.zeros(4, dtype=torch.float64),
        "width": 2,
        **change,
    }


def top_k(of: Arguments, **change: Any) -> Arguments:
    """Returns the same call against a teacher of two tokens per row."""
    rows = len(of["student_logits"])
    teacher = {"teacher_ids": torch.zeros(rows, 2, dtype=torch.int64), "teacher_log_probs": torch.zeros(rows, 2)}
    return {name: value for name, value in of.items() if name != "teacher_logits"} | teacher | change


def outputs(**change: Any) -> Arguments:
    return verified(log_probs=True) | {
        "tokens": torch.zeros(2, 2, dtype=torch.int64),
        "emitted": torch.zeros(2, dtype=torch.int32),
        "accepted": torch.zeros(2, dtype=torch.int32),
        "beta": torch.zeros(4),
        "kl": torch.zeros(4),
        "out_log_probs": torch.zeros(2, 2, 3),
        **change,
    }


def of_uniform(uniform: Tensor) -> Callable[[], Arguments]:
    return lambda: pair(uniform=uniform)


DOUBLE = torch.float64
OF_A_PAIR = (
    (lambda: pair(student_logits=torch.zeros(5)), r"student_logits must have shape \[N, V\], got \[5\]"),
    (lambda: pair(teacher_logits=torch.zeros(3, 5, 1)), r"teacher_logits must have shape \[N, V\], got \[3, 5, 1\]"),
    (lambda: pair(student_logits=torch.zeros(3, 5, dtype=DOUBLE)), "student_logits must be float32, .* got Double"),
    (lambda: pair(teacher_logits=torch.zeros(3, 5).long()), "teacher_logits must be float32, .* got Long"),
    (lambda: pair(teacher_logits=torch.zeros(2, 5)), r"same shape, got \[3, 5\] and \[2, 5\]"),
    (lambda: pair(teacher_logits=torch.zeros(3, 6)), r"same shape, got \[3, 5\] and \[3, 6\]"),
    (
        lambda: pair(student_logits=torch.zeros(3, 0), teacher_logits=torch.zeros(3, 0)),
        r"at least one token, got shape \[3, 0\]",
    ),
    (lambda: pair(temperature=0.0), "temperature must be between 1e-6 and 1e6, got 0"),
    (lambda: pair(temperature=1e-39), "temperature must be between 1e-6 and 1e6, got 1e-39"),
    (lambda: pair(temperature=float("inf")), "temperature must be between 1e-6 and 1e6, got inf"),
    (lambda: pair(temperature=float("nan")), "temperature must be between 1e-6 and 1e6, got nan"),
    (lambda: pair(epsilon=-0.5), "epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got -0.5"),
    (lambda: pair(epsilon=float("nan")), "epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got nan"),
    (lambda: pair(epsilon=torch.zeros(3, 1)), r"epsilon must have shape \[N\] = \[3\], got \[3, 1\]"),
    (lambda: pair(epsilon=torch.zeros(2)), r"epsilon must have shape \[N\] = \[3\], got \[2\]"),
    (lambda: pair(epsilon=torch.tensor(0.1)), r"epsilon must have shape \[N\] = \[3\], got \[\]"),
    (lambda: pair(epsilon=torch.zeros(3, dtype=DOUBLE)), "epsilon must be Float, got Double"),
    (lambda: pair(epsilon=torch.zeros(3).half()), "epsilon must be Float, got Half"),
)
OF_A_UNIFORM = (
    (of_uniform(torch.zeros(3)), "uniform must be Double, got Float"),
    (of_uniform(torch.zeros(3, 1, dtype=DOUBLE)), r"uniform must have shape \[N\] = \[3\], got \[3, 1\]"),
    (of_uniform(torch.zeros(2, dtype=DOUBLE)), r"uniform must have shape \[N\] = \[3\], got \[2\]"),
)
OF_A_REQUEST = (
    (lambda: verified(student_logits=torch.zeros(4)), r"student_logits must have shape \[N, V\], got \[4\]"),
    (lambda: verified(teacher_logits=torch.zeros(4, 6, dtype=DOUBLE)), "teacher_logits must be float32, .* got Double"),
    (lambda: verified(teacher_logits=torch.zeros(4, 0)), r"at least one token, .* teacher_logits \[4, 0\]"),
    (
        lambda: verified(student_logits=torch.zeros(3, 5)),
        "student_logits must have at least N = 4 rows if student_r",
    ),
    (
        lambda: verified(teacher_logits=torch.zeros(3, 6)),
        "teacher_logits must have at least N = 4 rows if teacher_r",
    ),
    (lambda: verified(vocab=6), r"vocab must be between 0 \(.*\) and 5, got 6"),
    (lambda: verified(vocab=-1), r"vocab must be between 0 \(.*\) and .*, got -1"),
    (lambda: verified(width=0), "width must be at least 1 and less than 2\\^31, got 0"),
    (lambda: verified(width=2**61), f"width must be at least 1 and less than 2\\^31, got {2**61}"),
    (lambda: verified(student_kind=3), r"student_kind must be 0 \(logits\), .*, got 3"),
    (lambda: verified(draft_tokens=torch.zeros(4)), "draft_tokens must be int32 or int64, got Float"),
    (lambda: verified(draft_tokens=torch.zeros(4, 1).long()), r"draft_tokens must have shape \[N\], got \[4, 1\]"),
    (lambda: verified(offsets=torch.zeros(3)), "offsets must be int32 or int64, got Float"),
    (lambda: verified(offsets=torch.zeros(0).long()), r"offsets must have shape \[B \+ 1\], got \[0\]"),
    (lambda: verified(epsilon=torch.ones(3)), r"epsilon must have shape \[B\] = \[2\], got \[3\]"),
    (lambda: verified(epsilon=torch.ones(2, dtype=DOUBLE)), "epsilon must be Float, got Double"),
    (lambda: verified(temperature=torch.ones(1)), r"temperature must have shape \[B\] = \[2\], got \[1\]"),
    (lambda: verified(accept_uniform=torch.zeros(4)), "accept_uniform must be Double, got Float"),
    (lambda: verified(draw_uniform=torch.zeros(3, dtype=DOUBLE)), r"draw_uniform must have shape \[N\] = \[4\], got"),
    (lambda: verified(student_rows=torch.zeros(3).long()), r"student_rows must have shape \[N\] = \[4\], got \[3\]"),
    (lambda: verified(teacher_rows=torch.zeros(4)), "teacher_rows must be int32 or int64, got Float"),
)
OF_OUTPUTS = (
    (lambda: outputs(tokens=torch.zeros(2, 2)), "output tokens must be Int or Long, got Float"),
    (lambda: outputs(tokens=torch.zeros(2, 3).long()), r"output tokens must have shape \[2, 2\], got \[2, 3\]"),
    (lambda: outputs(tokens=torch.zeros(2, 4).long()[:, ::2]), "output tokens must be contiguous"),
    (lambda: outputs(emitted=torch.zeros(2).long()), "output emitted must be Int, got Long"),
    (lambda: outputs(accepted=torch.zeros(3).int()), r"output accepted must have shape \[2\], got \[3\]"),
    (lambda: outputs(beta=torch.zeros(4, dtype=DOUBLE)), "output beta must be Float, got Double"),
    (lambda: outputs(kl=torch.zeros(2)), r"output kl must have shape \[4\], got \[2\]"),
    (lambda: outputs(out_log_probs=torch.zeros(0, 0, 3)), r"output log_probs must have shape \[2, 2, 3\], got"),
    (lambda: outputs(log_probs=False), r"log_probs must have no element if log_probs=False, got shape \[2, 2, 3\]"),
)


OF_A_TOP_K_TEACHER: tuple[tuple[Arguments, str], ...] = (
    ({"student_logits": torch.zeros(4)}, r"student_logits must have shape \[N, V\], got \[4\]"),
    ({"student_logits": torch.zeros(3, 0)}, r"at least one token, got shape \[3, 0\]"),
    ({"teacher_ids": torch.zeros(3).long()}, r"teacher_ids must have shape \[N, k\], got \[3\]"),
    ({"teacher_log_probs": torch.zeros(3, 1)}, r"teacher_log_probs must have the shape of teacher_ids, got \[3, 1\]"),
    ({"teacher_log_probs": torch.zeros(3)}, r"teacher_log_probs must have the shape of teacher_ids, got \[3\]"),
    ({"teacher_ids": torch.zeros(4, 2)}, "teacher_ids must be int32 or int64, got Float"),
    ({"teacher_log_probs": torch.zeros(4, 2, dtype=DOUBLE)}, "teacher_log_probs must be Float, got Double"),
)
OF_A_TOP_K_ROW: tuple[tuple[Arguments, str], ...] = (
    ({"student_logits": torch.zeros(2, 5)}, r"teacher_ids must have shape \[N, k\] with N = 2, got \[3, 2\]"),
    ({"temperature": 0.0}, "temperature must be between 1e-6 and 1e6, got 0"),
    ({"epsilon": -0.5}, "epsilon must be a KL budget in nats, 0 <= epsilon <= inf, got -0.5"),
    ({"epsilon": torch.zeros(2)}, r"epsilon must have shape \[N\] = \[3\], got \[2\]"),
)
OF_A_TOP_K_REQUEST: tuple[tuple[Arguments, str], ...] = (
    ({"vocab": 6}, r"vocab must be between 0 \(the student's width\) and 5, got 6"),
    ({"vocab": -1}, r"vocab must be between 0 \(the student's width\) and 5, got -1"),
    ({"width": 0}, "width must be at least 1"),
    (
        {"teacher_ids": torch.zeros(3, 2).int(), "teacher_log_probs": torch.zeros(3, 2)},
        "teacher_ids must have at least N = 4 rows if teacher_rows is not given, got",
    ),
    ({"temperature": torch.ones(1)}, r"temperature must have shape \[B\] = \[2\], got \[1\]"),
)


def top_k_faults() -> list[Fault]:
    def of_rows(change: Arguments, name: str) -> Callable[[], Arguments]:
        uniform = {"uniform": torch.zeros(3, dtype=DOUBLE)} if name == "sample_top_k" else {}
        rows = {key: value[:3] if key.startswith("teacher") else value for key, value in change.items()}
        return lambda: top_k(pair(), **uniform) | rows

    def of_requests(change: Arguments, make: Callable[[], Arguments]) -> Callable[[], Arguments]:
        return lambda: top_k(make()) | change

    found = [
        Fault(name, of_rows(change, name), text)
        for name in ("solve_top_k", "blend_top_k", "sample_top_k")
        for change, text in OF_A_TOP_K_TEACHER + OF_A_TOP_K_ROW
    ]
    for name, make in (("verify_top_k", verified), ("verify_top_k.out", outputs)):
        found += [Fault(name, of_requests(*row), text) for *row, text in
                  ((change, make, text) for change, text in OF_A_TOP_K_TEACHER + OF_A_TOP_K_REQUEST)]  # fmt: skip
    kl = top_k(outputs(kl=torch.zeros(2)))
    return [*found, Fault("verify_top_k.out", lambda: kl, r"output kl must have shape \[4\], got \[2\]")]


def faults() -> list[Fault]:
    found = [Fault("solve", *row) for row in OF_A_PAIR] + [Fault("blend", *row) for row in OF_A_PAIR]
    uniform = torch.zeros(3, dtype=DOUBLE)
    found += [
        Fault("sample", lambda change=change: {**change(), "uniform": uniform}, text) for change, text in OF_A_PAIR
    ]
    found += [Fault("sample", *row) for row in OF_A_UNIFORM]
    found += [Fault("verify", *row) for row in OF_A_REQUEST]
    found += [Fault("verify.out", lambda change=change: outputs(**change()), text) for change, text in OF_A_REQUEST]
    return found + [Fault("verify.out", *row) for row in OF_OUTPUTS] + top_k_faults()


def call(operator: str, arguments: Arguments) -> Any:
    name, _, overload = operator.partition(".")
    if not overload and not name.startswith("verify"):
        overload = "per_row" if isinstance(arguments["epsilon"], Tensor) else "default"
    return getattr(getattr(torch.ops.trb, name), overload or "default")(**arguments)


def on_the_meta_device(value: Any) -> Any:
    """Moves the tensor to the meta device with the same strides, which `to` would not keep."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


@pytest.mark.parametrize("fault", faults(), ids=lambda fault: f"{fault.operator}: {fault.message}")
def test_a_call_that_cannot_be_meant_is_refused_alike_by_kernels_that_compute_and_that_trace(fault: Fault) -> None:
    message = f"trb::{fault.operator.partition('.')[0]}: .*" + fault.message
    arguments = fault.change()
    with pytest.raises(RuntimeError, match=message):
        call(fault.operator, arguments)
    on_meta = {name: on_the_meta_device(value) for name, value in arguments.items()}
    with pytest.raises(RuntimeError, match=message):
        call(fault.operator, on_meta)
    mode = FakeTensorMode()
    fake = {name: mode.from_tensor(value) if isinstance(value, Tensor) else value for name, value in arguments.items()}
    with mode, pytest.raises(RuntimeError, match=message):
        call(fault.operator, fake)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("solve", pair(epsilon=torch.ones(3, device="meta"))),
        ("solve", pair(teacher_logits=torch.ones(3, 5, device="meta"))),
        ("sample", pair(uniform=torch.ones(3, dtype=DOUBLE, device="meta"))),
        ("verify", verified(offsets=torch.zeros(3, device="meta").long())),
        ("verify.out", outputs(kl=torch.zeros(4, device="meta"))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tensor_on_meta_among_others_gives_no_uninitialized_answer(operator: str, arguments: Arguments) -> None:
    with pytest.raises(RuntimeError, match="must be on the device of student_logits"):
        call(operator, arguments)


def shared(first: str, second: str) -> Arguments:
    arguments = outputs()
    storage = torch.zeros(64, dtype=torch.int64)

    def there(like: Tensor) -> Tensor:
        return storage.view(like.dtype)[: like.numel()].view(like.shape)

    return {**arguments, first: there(arguments[first]), second: there(arguments[second])}


@pytest.mark.parametrize(
    ("output", "other"),
    [
        ("kl", "beta"),
        ("accepted", "emitted"),
        ("beta", "tokens"),
        ("tokens", "draft_tokens"),
        ("beta", "student_logits"),
        ("out_log_probs", "draw_uniform"),
        ("emitted", "offsets"),
        ("kl", "epsilon"),
    ],
)
def test_outputs_share_no_memory(output: str, other: str) -> None:
    first = output.removeprefix("out_")
    with pytest.raises(RuntimeError, match=f"output {first} must not share memory with {other}"):
        call("verify.out", shared(output, other))


def test_outputs_beside_one_another_in_one_storage_are_apart() -> None:
    storage = torch.zeros(8)
    call("verify.out", outputs(beta=storage[:4], kl=storage[4:]))
    assert torch.equal(storage[:4], trbext.verify(**verified()).beta)


@pytest.mark.parametrize("given", [[[0.0, 1.0]], np.zeros((1, 2))], ids=["list", "numpy"])
def test_logits_must_be_tensors(given: Any) -> None:
    tensor = torch.zeros(1, 2)
    with pytest.raises(TypeError, match="student_logits must be a tensor, got "):
        trbext.solve(given, tensor, 0.1)
    with pytest.raises(TypeError, match="teacher_logits must be a tensor, got "):
        trbext.solve(tensor, trbext.TopK(torch.zeros(1, 1, dtype=torch.int64), given), 0.1)
    with pytest.raises(TypeError, match="uniform must be a tensor, got "):
        trbext.sample(tensor, tensor, 0.1, uniform=given)
    for name in ("student_logits", "draft_tokens", "offsets", "accept_uniform", "draw_uniform", "student_rows"):
        with pytest.raises(TypeError, match=f"{name} must be a tensor, got "):
            trbext.verify(**verified(**{name: given}))


@pytest.mark.parametrize("operator", [trbext.solve, trbext.blend, trbext.sample])
def test_a_temperature_for_each_row_is_refused(operator: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"temperature must be one number, got shape \[3\]"):
        operator(**pair(temperature=torch.ones(3)))


def test_a_number_of_any_kind_is_a_budget_and_a_temperature() -> None:
    numbers = ((Fraction(1, 4), Fraction(1, 2)), (0.25, 0.5))
    for operator, made in ((trbext.solve, pair), (trbext.verify, verified)):
        found, expected = (operator(**made(epsilon=e, temperature=t)) for e, t in numbers)
        assert torch.equal(found.beta, expected.beta)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"teacher_logits": None}, "teacher_logits must be a tensor or a TopK, got NoneType"),
        ({"teacher_logits": (torch.zeros(4, 1),) * 3}, "teacher_logits must be a tensor or a TopK, got tuple"),
        ({"epsilon": None}, "epsilon must be .* got None"),
        ({"epsilon": "0.1"}, "epsilon must be .* got 0.1"),
        ({"temperature": None}, "temperature must be between 1e-6 and 1e6, got None"),
    ],
    ids=str,
)
@pytest.mark.parametrize("operator", ["solve", "verify"])
def test_arguments_of_another_kind_are_named(operator: str, changed: Arguments, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        getattr(trbext, operator)(**{**(pair() if operator == "solve" else verified()), **changed})


def test_a_float_budget_beyond_float32_is_no_limit_for_verify_either() -> None:
    assert (trbext.solve(**pair(epsilon=1e39)).beta == 1).all()
    found, unlimited = (trbext.verify(**verified(epsilon=budget)) for budget in (1e39, torch.inf))
    assert torch.equal(found.tokens, unlimited.tokens)
