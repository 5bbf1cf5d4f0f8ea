"""torch.ops.trb behaves as a PyTorch operator should: opcheck, torch.compile, torch.export, no autograd graph, CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import trbext
from python_tests.operators.top_k.top_k_teachers import top_k_of
from python_tests.rollout.host_reads import HostReads

OPERATORS = ["blend", "solve", "sample", "blend_top_k", "solve_top_k", "sample_top_k"]


def arguments(
    op: str, overload: str, requires_grad: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 50, generator=generator).to(dtype).requires_grad_(requires_grad) for _ in "ab")
    epsilon = 0.05 if overload == "default" else torch.full((4,), 0.05)
    uniform = (torch.rand(4, dtype=torch.float64, generator=generator),) if "sample" in op else ()
    if "top_k" in op:
        return student, *top_k_of(teacher.detach(), 6), epsilon, *uniform
    return student, teacher, epsilon, *uniform


def operator(op: str, overload: str) -> Any:
    return getattr(getattr(torch.ops.trb, op), overload)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("overload", ["default", "per_row"])
@pytest.mark.parametrize("op", OPERATORS)
def test_opcheck(op: str, overload: str, requires_grad: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(
            operator(op, overload), arguments(op, overload, requires_grad, dtype), {"temperature": 0.9}
        )


@pytest.mark.parametrize("overload", ["default", "per_row"])
@pytest.mark.parametrize("op", OPERATORS)
def test_no_autograd_graph(op: str, overload: str) -> None:
    outputs = operator(op, overload)(*arguments(op, overload, requires_grad=True))
    assert not any(output.requires_grad for output in outputs)
    assert all(output.grad_fn is None for output in outputs)


def sampling_step(student: Tensor, teacher: Tensor, epsilon: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Computes what a trainer would compile: the blend between tensor code of its own."""
    drawn = trbext.sample(student * 1.0, teacher * 1.0, epsilon, uniform=uniform)
    top = trbext.TopK(drawn.token[:, None], drawn.teacher_log_prob[:, None])
    log_probs = trbext.blend(student, teacher, 0.02).log_probs
    beta = trbext.solve(student, teacher, 0.02, temperature=0.5).beta + trbext.blend(student, top, 0.02).beta
    beta = beta + trbext.sample(student, top, epsilon, uniform=uniform).log_prob
    return drawn.token + 1, drawn.log_prob + log_probs.gather(1, drawn.token[:, None])[:, 0], beta


DYNAMIC = pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.nightly), True])


@DYNAMIC
def test_compile_fullgraph(dynamic: bool) -> None:
    student, teacher, epsilon, uniform = arguments("sample", "per_row")
    torch._dynamo.reset()  # it would take a graph of the other test
    compiled = torch.compile(sampling_step, fullgraph=True, dynamic=dynamic)
    for rows in (4, 3):
        inputs = student[:rows], teacher[:rows], epsilon[:rows], uniform[:rows]
        for got, expected in zip(compiled(*inputs), sampling_step(*inputs), strict=True):
            assert torch.equal(got, expected)


def test_compiled_draws_need_no_uniform_of_the_caller() -> None:
    def step(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
        return trbext.sample(student * 1.0, teacher, epsilon).token + 1

    student, teacher, *_ = arguments("sample", "default")
    for dynamic in (None, True):
        compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for rows in (4, 3):
            tokens = compiled(student[:rows], teacher[:rows], 0.05)
            assert tokens.shape == (rows,)
            assert ((tokens >= 1) & (tokens <= 50)).all()


def test_export_with_a_dynamic_batch() -> None:
    class Step(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return sampling_step(*inputs)  # type: ignore[arg-type]

    inputs = arguments("sample", "per_row")
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(Step(), inputs, dynamic_shapes={"inputs": ({0: batch},) * 4})
    for rows in (4, 2):
        part = tuple(t[:rows] for t in inputs)
        assert all(torch.equal(a, b) for a, b in zip(exported.module()(*part), sampling_step(*part), strict=True))


def verify_arguments(requires_grad: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(6, 50, generator=generator).to(dtype).requires_grad_(requires_grad) for _ in "ab")
    uniforms = (torch.rand(count, dtype=torch.float64, generator=generator) for count in (6, 6))
    drafts = torch.tensor([3, 4, -1, 7, 8, 9])
    return student, teacher, drafts, torch.tensor([0, 3, 6]), torch.full((2,), 0.1), torch.ones(2), *uniforms


def verify_top_k_arguments() -> tuple[Any, ...]:
    student, teacher, *others = verify_arguments()
    return student, *top_k_of(teacher, 6), *others


def verify_outputs() -> dict[str, Tensor]:
    return {
        "tokens": torch.empty(2, 3, dtype=torch.int32),
        "emitted": torch.empty(2, dtype=torch.int32),
        "accepted": torch.empty(2, dtype=torch.int32),
        "beta": torch.empty(6),
        "kl": torch.empty(6),
        "out_log_probs": torch.empty(2, 3, 3),
    }


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_verify(requires_grad: bool) -> None:
    rows = torch.arange(6).int()
    for dtype in (torch.float32, torch.bfloat16):
        for options in ({}, {"log_probs": True, "student_rows": rows, "student_kind": 2, "vocab": 40}):
            torch.library.opcheck(
                torch.ops.trb.verify.default, verify_arguments(requires_grad, dtype), {"width": 3, **options}
            )
    torch.library.opcheck(torch.ops.trb.verify_top_k.default, verify_top_k_arguments(), {"width": 3, "log_probs": True})
    # All but torch.compile, which accepts no operator of a library that returns what it wrote to.
    for operator, inputs in (
        (torch.ops.trb.verify.out, verify_arguments()),
        (torch.ops.trb.verify_top_k.out, verify_top_k_arguments()),
    ):
        torch.library.opcheck(
            operator,
            inputs,
            {"width": 3, "log_probs": True, **verify_outputs()},
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )
    outputs = torch.ops.trb.verify(*verify_arguments(requires_grad), width=3)
    assert not any(output.requires_grad for output in outputs)


def verifying_step(student: Tensor, teacher: Tensor, drafts: Tensor, offsets: Tensor, *uniforms: Tensor) -> Any:
    accept, draw = uniforms
    kept = trbext.verify(
        student * 1.0, teacher, drafts, offsets, 0.1, temperature=0.8, accept_uniform=accept, draw_uniform=draw, width=3
    )
    # Nothing that rounds follows: a compiled sum adds in an order of its own.
    return kept.tokens + 1, kept.accepted.sum(), -kept.beta.nan_to_num()


@DYNAMIC
def test_compile_verify_fullgraph(dynamic: bool) -> None:
    student, teacher, drafts, offsets, _, _, accept, draw = verify_arguments()
    torch._dynamo.reset()
    compiled = torch.compile(verifying_step, fullgraph=True, dynamic=dynamic)
    for rows, requests in ((6, 2), (5, 1)):
        inputs = student[:rows], teacher[:rows], drafts[:rows], offsets[: requests + 1], accept[:rows]
        inputs = (*inputs, draw[:rows])
        for got, expected in zip(compiled(*inputs), verifying_step(*inputs), strict=True):
            assert torch.equal(got, expected)


def test_one_graph_serves_verify_at_every_width() -> None:
    student, teacher, drafts, offsets, _, _, accept, draw = verify_arguments()

    def tokens(width: int, vocab: int) -> Tensor:
        return trbext.verify(
            student, teacher, drafts, offsets, 0.1, accept_uniform=accept, draw_uniform=draw, width=width, vocab=vocab
        ).tokens

    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(tokens, fullgraph=True, dynamic=True, backend=counter)
    for width, vocab in ((3, 50), (4, 40), (9, 30)):
        assert torch.equal(compiled(width, vocab), tokens(width, vocab))
    assert counter.frame_count == 1


def test_a_width_and_a_length_known_at_run_time_only_compile() -> None:
    student, teacher, drafts, offsets, _, _, accept, draw = verify_arguments()

    def step(width: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        columns = width.item()
        torch._check(columns >= 1)
        torch._check(columns <= 1000)
        verified = trbext.verify(
            student, teacher, drafts, offsets, 0.1, accept_uniform=accept, draw_uniform=draw, width=int(columns)
        )
        return verified.tokens, trbext.sample(student[:3], teacher[:3], 0.1, uniform=accept[kept]).token

    with torch._dynamo.config.patch(capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(step, fullgraph=True)
        for kept in (torch.tensor([1, 0, 1, 0, 0, 1]), torch.tensor([0, 1, 1, 1, 0, 0])):
            inputs = torch.tensor(4), kept.bool()
            assert all(torch.equal(a, b) for a, b in zip(compiled(*inputs), step(*inputs), strict=True))


@pytest.mark.skipif(trbext._C.cuda_compiled, reason="this build has CUDA kernels")
@pytest.mark.parametrize("op", OPERATORS)
def test_a_cpu_build_called_with_cuda_tensors_says_so(op: str) -> None:
    """Without a GPU, the CUDA kernel is reached by redispatching to its key."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    for overload in ("default", "per_row"):
        with pytest.raises(RuntimeError, match=r"built without CUDA kernels.*got CUDA tensors"):
            operator(op, overload).redispatch(keys, *arguments(op, overload))


@pytest.mark.skipif(trbext._C.cuda_compiled, reason="this build has CUDA kernels")
def test_a_cpu_build_called_with_cuda_tensors_to_verify_says_so() -> None:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    for verify, outputs in ((torch.ops.trb.verify.default, {}), (torch.ops.trb.verify.out, verify_outputs())):
        with pytest.raises(RuntimeError, match=r"built without CUDA kernels.*got CUDA tensors"):
            verify.redispatch(keys, *verify_arguments(), width=3, **outputs)
    for verify, outputs in (
        (torch.ops.trb.verify_top_k.default, {}),
        (torch.ops.trb.verify_top_k.out, verify_outputs()),
    ):
        with pytest.raises(RuntimeError, match=r"built without CUDA kernels.*got CUDA tensors"):
            verify.redispatch(keys, *verify_top_k_arguments(), width=3, **outputs)


@pytest.mark.parametrize("op", ["blend", "solve", "sample"])
def test_the_epsilon_of_a_single_row_is_not_read_by_python(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One element also fits the overload of a float, which reads it: on a GPU that is a wait, in a graph an error."""
    student, teacher, _, *uniform = arguments(op, "per_row")
    student, teacher, uniform = student[:1], teacher[:1], [u[:1] for u in uniform]
    epsilon = torch.tensor([0.05])
    drawn = {"uniform": uniform[0]} if uniform else {}
    with monkeypatch.context() as patches, HostReads(patches) as reads:
        ours = getattr(trbext, op)(student, teacher, epsilon, **drawn)
        packet = getattr(torch.ops.trb, op)(student, teacher, epsilon, *uniform)
    assert reads.count == 0
    for got, expected in zip(ours, packet, strict=True):
        assert torch.equal(got, expected)


def test_saved_results_load_with_weights_only(tmp_path: Path) -> None:
    student, teacher = torch.randn(2, 3, 50)
    for result in (
        trbext.blend(student, teacher, 0.1),
        trbext.sample(student, teacher, 0.1, uniform=torch.rand(3).double()),
    ):
        torch.save(result, tmp_path / "result.pt")
        loaded = torch.load(tmp_path / "result.pt", weights_only=True)
        assert type(loaded) is type(result)
        assert all(map(torch.equal, loaded, result))
