"""Tests what holds for verify on a GPU beyond the semantics of every device: sizes, streams, graphs, memory.

Its law, edges, layouts and independence of the batch are in test_verify*.py, which run on the GPU too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import trbext
from python_tests.operators.devices import Operators, cuda_missing, on
from python_tests.operators.verify_calls import Call, assert_follows_the_law, of_kind, ragged, same
from trbext.results import Verification

pytestmark = pytest.mark.cuda
if missing := cuda_missing():
    pytest.skip(missing, allow_module_level=True)

CPU, CUDA = Operators("cpu"), Operators("cuda")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_SLEEP = 1_000_000_000  # cycles: about half a second, far above what the calls and copies here take


def batch(counts: list[int], vocab: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16, kind: int = 0) -> Call:
    """Returns a batch on the CPU: drafts of the student, a tenth of the rows direct ones, two rows of padding."""
    generator = torch.Generator().manual_seed(seed)
    rows, requests = sum(counts) + 2, len(counts)
    student = 2 * torch.randn(rows, vocab, generator=generator)
    teacher = student + torch.randn(rows, vocab, generator=generator)
    call = ragged(
        student,
        teacher.to(dtype),
        counts,
        seed=seed,
        epsilon=0.002 + 0.2 * torch.rand(requests, generator=generator),
        temperature=0.7 + torch.rand(requests, generator=generator),
        padding=2,
        kind=0,
    )
    temperature = torch.as_tensor(call.temperature).repeat_interleave(torch.tensor(counts))
    of_row = torch.cat([temperature, torch.ones(2)])
    return call.but(student_logits=of_kind(student, of_row, kind).to(dtype), student_kind=kind)


def on_gpu(call: Call, device: str = "cuda") -> Call:
    tensors = {name: on(device, value) for name, value in vars(call).items() if isinstance(value, Tensor)}
    return call.but(**tensors)


def tensors_of(call: Call) -> dict[str, Tensor]:
    return {name: value for name, value in vars(call).items() if isinstance(value, Tensor)}


def agree(call: Call) -> None:
    """Checks that both devices follow the law; they may differ if a uniform lies between their two betas."""
    gpu, cpu = call.by(CUDA.verify), call.by(CPU.verify)
    assert_follows_the_law(call, gpu)
    parted = (gpu.tokens != cpu.tokens).any(1).float().mean()
    assert parted <= 0.1, (gpu, cpu)
    both = ~gpu.kl.isnan() & ~cpu.kl.isnan()
    assert torch.allclose(gpu.kl[both], cpu.kl[both], rtol=3e-4, atol=2e-6)


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [1, 17, 4099, 50_257, 151_936, 262_144, 500_009])
def test_the_cpu_and_the_gpu_agree_at_every_size(vocab: int, dtype: torch.dtype, kind: int) -> None:
    """500,009 tokens are more than any cluster keeps on chip, so rows of that size are read again."""
    agree(batch([3, 0, 1, 4, 2], vocab, dtype=dtype, kind=kind))


def test_models_of_different_dtype_width_and_layout() -> None:
    call = batch([3, 4, 2], 50_257, dtype=torch.float32)
    wide = torch.full((11, 50_304), torch.nan)
    wide[:, :50_257] = call.student_logits
    agree(call.but(student_logits=wide.half()[:, 1:], teacher_logits=call.teacher_logits.bfloat16(), vocab=50_000,
                   draft_tokens=call.draft_tokens.clamp(max=49_999)))  # fmt: skip


@pytest.mark.parametrize("vocab", [1000, 50_257, 151_936])
def test_large_batches_are_bitwise_their_requests_by_themselves(vocab: int) -> None:
    """The GPU cannot hold that many rows at once, so that blocks and clusters work through several; rows by
    indirection."""
    few = batch([4] * 5, vocab)
    chosen = torch.randint(5, (180,), generator=torch.Generator().manual_seed(1))
    rows = (4 * chosen[:, None] + torch.arange(4)).reshape(-1)
    epsilon, temperature = (torch.as_tensor(values)[chosen] for values in (few.epsilon, few.temperature))
    many = few.but(
        draft_tokens=few.draft_tokens[rows], accept_uniform=few.accept_uniform[rows],
        draw_uniform=few.draw_uniform[rows], offsets=torch.arange(0, 721, 4), epsilon=epsilon,
        temperature=temperature, student_rows=rows, teacher_rows=rows.int(),
    )  # fmt: skip
    together, alone = many.by(CUDA.verify), few.by(CUDA.verify)
    for name in ("tokens", "emitted", "accepted", "log_probs"):
        got, expected = getattr(together, name), getattr(alone, name)[chosen]
        assert torch.equal(got.nan_to_num(-7.0), expected.nan_to_num(-7.0)), name
    assert torch.equal(together.beta.nan_to_num(-7.0), alone.beta[rows].nan_to_num(-7.0))


def test_more_requests_than_a_grid_has_blocks_in_one_direction() -> None:
    count = 70_001
    few = batch([1] * 7, 64)
    chosen = torch.arange(count) % 7
    epsilon, temperature = (torch.as_tensor(values)[chosen] for values in (few.epsilon, few.temperature))
    many = few.but(
        draft_tokens=few.draft_tokens[chosen], accept_uniform=few.accept_uniform[chosen],
        draw_uniform=few.draw_uniform[chosen], offsets=torch.arange(count + 1), epsilon=epsilon,
        temperature=temperature, student_rows=chosen, teacher_rows=chosen,
    )  # fmt: skip
    assert torch.equal(many.by(CUDA.verify).tokens, few.by(CUDA.verify).tokens[chosen])


def test_work_is_enqueued_on_the_current_stream() -> None:
    """The inputs are written just before on the same side stream, behind a delay: another stream would read the old
    ones."""
    old, new = (on_gpu(batch([3, 2, 4], 50_257, seed)) for seed in (1, 2))
    before, expected = old.by(trbext.verify), new.by(trbext.verify)
    assert not same(before, expected)
    call = old.but(**{name: value.clone() for name, value in tensors_of(old).items()})
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LARGEST_SLEEP // 4)
        for name, value in tensors_of(call).items():
            value.copy_(tensors_of(new)[name])
        copied = Verification(*(values.clone() for values in call.by(trbext.verify)))
    stream.synchronize()
    assert same(copied, expected)


def test_a_call_returns_while_the_gpu_is_busy() -> None:
    call = on_gpu(batch([3, 2, 4], 50_257))
    call.by(trbext.verify)  # loads the kernels
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(LARGEST_SLEEP)
        asleep = torch.cuda.Event()
        asleep.record()
        call.by(trbext.verify)
        returned_early = not asleep.query()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    torch.cuda.synchronize()
    assert returned_early, "the call waited for the GPU"


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_nothing_is_allocated_beyond_the_outputs_and_32_bytes_a_row(kind: int) -> None:
    call = on_gpu(batch([4] * 8, 151_936, kind=kind))
    call.by(trbext.verify)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()
    outputs = call.by(trbext.verify)
    torch.cuda.synchronize()
    after = torch.cuda.memory_stats()
    sizes = sum(output.numel() * output.element_size() for output in outputs)
    assert after["requested_bytes.all.peak"] - before["requested_bytes.all.current"] == sizes + 32 * 34


def outputs_of(call: Call, dtype: torch.dtype) -> dict[str, Tensor]:
    rows, requests = len(call.draft_tokens), call.requests
    return {
        "tokens": torch.empty(requests, call.width, dtype=dtype, device="cuda"),
        **{name: torch.empty(requests, dtype=torch.int32, device="cuda") for name in ("emitted", "accepted")},
        **{name: torch.empty(rows, device="cuda") for name in ("beta", "kl")},
        "out_log_probs": torch.empty(requests, call.width, 3, device="cuda"),
    }


def verify_out(call: Call, outputs: dict[str, Tensor]) -> None:
    options: dict[str, Any] = {field.name: getattr(call, field.name) for field in dataclasses.fields(call)}
    names = ("student_logits", "teacher_logits", "draft_tokens", "offsets", "epsilon", "temperature",
             "accept_uniform", "draw_uniform")  # fmt: skip
    torch.ops.trb.verify.out(*[options.pop(name) for name in names], **options, **outputs)


@pytest.mark.parametrize(("counts", "vocab"), [([4], 151_936), ([3, 0, 5, 2], 50_257), ([4] * 60, 1000)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_cuda_graph_of_verify_out_replays_on_what_its_inputs_hold(
    counts: list[int], vocab: int, dtype: torch.dtype
) -> None:
    """The offsets change too: an engine's batch changes under the same graph."""
    call = on_gpu(batch(counts, vocab))
    outputs = outputs_of(call, dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        verify_out(call, outputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        verify_out(call, outputs)
    for seed, counts_now in ((3, counts), (4, counts[::-1]), (5, [*counts[:-1], 0])):
        new = on_gpu(batch(counts, vocab, seed))
        new = new.but(offsets=torch.tensor([0, *torch.tensor(counts_now).cumsum(0).tolist()], device="cuda"))
        for name, value in tensors_of(call).items():
            value.copy_(tensors_of(new)[name])
        for _ in range(2):  # a replay must leave nothing for the next one
            graph.replay()
            torch.cuda.synchronize()
            got = Verification(outputs["tokens"].long(), *list(outputs.values())[1:])
            assert same(got, new.by(trbext.verify)), seed


def test_a_second_device_is_used_while_the_first_is_current() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices, got {torch.cuda.device_count()}")
    call = batch([3, 2, 4], 151_936)
    with torch.cuda.device(0):
        got = on_gpu(call, "cuda:1").by(trbext.verify)
        assert torch.cuda.current_device() == 0
    assert all(values.device == torch.device("cuda:1") for values in got)
    assert_follows_the_law(call, Verification(*(values.cpu() for values in got)))


def test_arguments_on_different_devices_are_errors_that_name_them() -> None:
    call = on_gpu(batch([2, 1], 100))
    for name in (
        "teacher_logits",
        "draft_tokens",
        "offsets",
        "epsilon",
        "temperature",
        "accept_uniform",
        "draw_uniform",
    ):
        with pytest.raises(RuntimeError, match=f"{name} must be on the"):
            call.but(**{name: getattr(call, name).cpu()}).by(trbext.verify)
