"""Tests what holds on a GPU beyond the semantics of every device: streams, graphs, memory, sizes, agreement with the
CPU.

The table of edges, the law of samples, the budget and the independence of the batch are in test_edges.py,
test_sample.py, test_solve.py, test_blend.py and test_bitwise.py, which run on the GPU too if there is one.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import trbext
from python_tests.operators.devices import Operators, cuda_missing
from python_tests.operators.row_families import EPSILONS, families
from trbext import reference

pytestmark = pytest.mark.cuda
if missing := cuda_missing():
    pytest.skip(missing, allow_module_level=True)

CPU, CUDA = Operators("cpu"), Operators("cuda")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CALLS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]] = {
    "solve": lambda student, teacher, epsilon, uniform: trbext.solve(student, teacher, epsilon),
    "blend": lambda student, teacher, epsilon, uniform: trbext.blend(student, teacher, epsilon),
    "sample": lambda student, teacher, epsilon, uniform: trbext.sample(student, teacher, epsilon, uniform=uniform),
}
LARGEST_SLEEP = 1_000_000_000  # cycles: about half a second, far above what the calls and copies here take


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    return CALLS[request.param]


def batch(rows: int, vocab: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    """Returns (student, teacher, epsilon, uniform) on the GPU, whose budgets bind: KL(teacher || student) is about
    0.5."""
    generator = torch.Generator().manual_seed(seed)
    student = 2 * torch.randn(rows, vocab, generator=generator)
    teacher = student + torch.randn(rows, vocab, generator=generator)
    epsilon = 0.002 + 0.02 * torch.rand(rows, generator=generator)
    uniform = torch.rand(rows, dtype=torch.float64, generator=generator)
    return student.to("cuda", dtype), teacher.to("cuda", dtype), epsilon.cuda(), uniform.cuda()


def equal(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def check_row(case: str, student: Tensor, teacher: Tensor, epsilon: float, uniform: Tensor) -> None:
    """Checks one pair of rows [V] with `sample` on both devices: the budget, the token, and the CPU's answer."""
    gpu, cpu = (trb.sample(student, teacher, epsilon, uniform=uniform) for trb in (CUDA, CPU))
    log_mu = reference.behavior_log_probs(student, teacher, gpu.beta)
    kl = reference.behavior_kl(student, teacher, gpu.beta)
    case += f": beta {gpu.beta:.9g} (CPU {cpu.beta:.9g}), KL {kl:.9g}, token {gpu.token} (CPU {cpu.token})"
    assert kl <= epsilon * (1 + 1e-4) + 1e-7, case
    assert (gpu.beta == 0) == (cpu.beta == 0), case
    assert (gpu.beta == 1) == (cpu.beta == 1), case
    if 0 < gpu.beta < 1:
        assert kl >= epsilon * (1 - 3e-4), case
    mu = log_mu.exp()
    edges = mu.cumsum(-1) / mu.sum()
    token = int(gpu.token)
    below = edges[token - 1] if token else torch.tensor(0.0)
    assert mu[token] > 0, case
    assert below - 1e-6 <= uniform <= edges[token] + 1e-6, case
    if gpu.token != cpu.token:  # both blends may differ within their tolerances, and an edge with them
        distance = (reference.behavior_log_probs(student, teacher, cpu.beta).exp() - mu).abs().sum() / 2
        assert (edges - uniform).abs().min() <= 1e-6 + distance, case
    for got, log_probs in (
        (gpu.log_prob, log_mu),
        (gpu.student_log_prob, student.double().log_softmax(-1)),
        (gpu.teacher_log_prob, teacher.double().log_softmax(-1)),
    ):
        assert torch.allclose(got.double(), log_probs[token], atol=1e-5, rtol=1e-6), case


@pytest.mark.parametrize("dtypes", itertools.product(DTYPES, DTYPES), ids=str)
def test_the_cpu_and_the_gpu_agree_on_every_family(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    generator = torch.Generator().manual_seed(0)
    for vocab in (17, 4099):
        for name, (student, teacher) in families(vocab).items():
            student, teacher = student.to(dtypes[0]), teacher.to(dtypes[1])
            for epsilon in (0.0, *EPSILONS):
                uniform = torch.rand((), dtype=torch.float64, generator=generator)
                check_row(f"{name}, V {vocab}, epsilon {epsilon}", student, teacher, epsilon, uniform)


@pytest.mark.parametrize("vocab", [32_768, 50_257, 128_256, 151_936, 262_144, 500_009])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_cpu_and_the_gpu_agree_at_every_size(vocab: int, dtype: torch.dtype) -> None:
    """500,009 tokens are more than any cluster keeps on chip, so rows of that size are read again."""
    generator = torch.Generator().manual_seed(0)
    rows = families(vocab)
    for name in ("language model, close", "flat", "peaked, disagreeing", "teacher's top tokens only"):
        student, teacher = (logits.to(dtype) for logits in rows[name])
        for epsilon in (1e-4, 0.02, 1.0):
            uniform = torch.rand((), dtype=torch.float64, generator=generator)
            check_row(f"{name}, V {vocab}, epsilon {epsilon}", student, teacher, epsilon, uniform)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [4099, 50_257, 151_936])
def test_large_rows_misaligned_padded_strided_or_transposed_are_bitwise_the_same(
    call: Callable[..., tuple[Tensor, ...]], vocab: int, dtype: torch.dtype
) -> None:
    student, teacher, epsilon, uniform = batch(3, vocab, dtype=dtype)
    expected = call(student, teacher, epsilon, uniform)

    def laid_out(logits: Tensor, offset: int, step: int) -> Tensor:
        wide = torch.full((3, step * vocab + 8), torch.nan, dtype=dtype, device="cuda")
        view = wide[:, offset : offset + step * vocab : step]
        return view.copy_(logits)

    for offsets in ((1, 1), (3, 1), (0, 7)):
        assert equal(
            call(laid_out(student, offsets[0], 1), laid_out(teacher, offsets[1], 1), epsilon, uniform), expected
        )
    assert equal(call(laid_out(student, 1, 2), teacher, epsilon, uniform), expected)
    assert equal(call(student, teacher.t().contiguous().t(), epsilon, uniform), expected)


@pytest.mark.parametrize("vocab", [1000, 50_257, 151_936])
def test_large_batches_are_bitwise_their_rows_by_themselves(
    call: Callable[..., tuple[Tensor, ...]], vocab: int
) -> None:
    """The GPU cannot hold that many rows at once, so that blocks and clusters work through several."""
    rows, distinct = 700, 20
    few = batch(distinct, vocab)
    chosen = torch.randint(distinct, (rows,), generator=torch.Generator().manual_seed(1)).cuda()
    together = call(*(values[chosen] for values in few))
    alone = [call(*(values[row : row + 1] for values in few)) for row in range(distinct)]
    for i, values in enumerate(together):
        expected = torch.cat([outputs[i] for outputs in alone])
        for part in range(0, rows, 100):  # the whole output of blend would need twice the memory
            assert torch.equal(values[part : part + 100], expected[chosen[part : part + 100]])


def test_more_rows_than_a_grid_has_blocks_in_one_direction(call: Callable[..., tuple[Tensor, ...]]) -> None:
    few = batch(7, 64)
    chosen = torch.arange(70_001, device="cuda") % 7
    expected = call(*few)
    together = call(*(values[chosen] for values in few))
    assert equal(together, tuple(values[chosen] for values in expected))


def test_more_than_2_to_the_31_logits_that_are_all_there(call: Callable[..., tuple[Tensor, ...]]) -> None:
    vocab = 151_936
    rows = 2**31 // vocab + 2
    needed, free = rows * vocab * (2 + 2 + 4), torch.cuda.mem_get_info()[0]
    if free < 1.1 * needed:
        pytest.skip(f"needs {1.1 * needed / 1e9:.0f} GB of GPU memory, got {free / 1e9:.0f} GB")
    few = batch(2, vocab)
    last = torch.zeros(rows, dtype=torch.int64, device="cuda")
    last[-2:] = 1
    outputs = call(*(values[last] for values in few))
    for values, expected in zip(outputs, call(*few), strict=True):
        assert torch.equal(values[-1], expected[1])
        assert torch.equal(values[-2], expected[1])
        assert torch.equal(values[-3], expected[0])
    del outputs
    torch.cuda.empty_cache()


def test_work_is_enqueued_on_the_current_stream(call: Callable[..., tuple[Tensor, ...]]) -> None:
    """The inputs are written just before on the same side stream, behind a delay: another stream would read the old
    ones."""
    old, new = batch(4, 50_257, seed=1), batch(4, 50_257, seed=2)
    before, expected = call(*old), call(*new)
    assert not equal(before, expected)
    inputs = tuple(values.clone() for values in old)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LARGEST_SLEEP // 4)
        for values, written in zip(inputs, new, strict=True):
            values.copy_(written)
        got = call(*inputs)
        copied = tuple(values.clone() for values in got)  # on the same stream, so after the call
    stream.synchronize()
    assert equal(copied, expected)


def test_a_call_returns_while_the_gpu_is_busy(call: Callable[..., tuple[Tensor, ...]]) -> None:
    inputs = batch(4, 50_257)
    call(*inputs)  # loads the kernels
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(LARGEST_SLEEP)
        asleep = torch.cuda.Event()
        asleep.record()
        call(*inputs)
        returned_early = not asleep.query()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    torch.cuda.synchronize()
    assert returned_early, "the call waited for the GPU"


@pytest.mark.parametrize("vocab", [1000, 151_936])
def test_nothing_is_allocated_beyond_the_outputs(call: Callable[..., tuple[Tensor, ...]], vocab: int) -> None:
    inputs = batch(8, vocab)
    call(*inputs)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()
    outputs = call(*inputs)
    torch.cuda.synchronize()
    after = torch.cuda.memory_stats()
    sizes = sum(output.numel() * output.element_size() for output in outputs)
    assert after["requested_bytes.all.peak"] - before["requested_bytes.all.current"] == sizes
    assert after["allocation.all.allocated"] - before["allocation.all.allocated"] == len(outputs)
    free = torch.cuda.mem_get_info()[0]
    for _ in range(20):
        call(*inputs)
    torch.cuda.synchronize()
    assert torch.cuda.mem_get_info()[0] >= free - 2**24, "memory that PyTorch does not know of"


@pytest.mark.parametrize(("rows", "vocab"), [(1, 151_936), (8, 50_257), (300, 1000)])
def test_a_cuda_graph_replays_on_what_its_inputs_hold(
    call: Callable[..., tuple[Tensor, ...]], rows: int, vocab: int
) -> None:
    inputs = batch(rows, vocab)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(*inputs)
    seen = []
    for seed in (3, 4):
        new = batch(rows, vocab, seed)
        for values, written in zip(inputs, new, strict=True):
            values.copy_(written)
        for _ in range(2):  # a replay must leave nothing for the next one
            graph.replay()
            torch.cuda.synchronize()
            assert equal(captured, call(*new))
        seen.append(captured[0].clone())
    assert not torch.equal(*seen)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_code_gives_the_same(mode: str) -> None:
    pytest.importorskip("triton", reason="torch.compile needs triton on a GPU")

    def step(student: Tensor, teacher: Tensor, epsilon: Tensor, uniform: Tensor) -> tuple[Tensor, ...]:
        drawn = trbext.sample(student * 1.0, teacher, epsilon, uniform=uniform)
        log_probs = trbext.blend(student, teacher, 0.02).log_probs.gather(1, drawn.token[:, None])[:, 0]
        return drawn.token + 1, drawn.log_prob, log_probs, trbext.solve(student, teacher, 0.02, temperature=0.5).beta

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, mode=mode)
    for seed in range(4):  # reduce-overhead warms up, records, replays
        inputs = batch(5, 4099, seed)
        assert equal(tuple(values.clone() for values in compiled(*inputs)), step(*inputs)), seed


@pytest.mark.parametrize("overload", ["default", "per_row"])
@pytest.mark.parametrize("op", ["blend", "solve", "sample"])
def test_opcheck(op: str, overload: str) -> None:
    student, teacher, epsilon, uniform = batch(4, 50)
    operator = getattr(getattr(torch.ops.trb, op), overload)
    budget = (0.05 if overload == "default" else epsilon, *((uniform,) if op == "sample" else ()))
    torch.library.opcheck(operator, (student, teacher, *budget), {"temperature": 0.9})


def test_a_second_device_is_used_while_the_first_is_current(call: Callable[..., tuple[Tensor, ...]]) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices, got {torch.cuda.device_count()}")
    inputs = batch(4, 151_936)
    other = tuple(values.to("cuda:1") for values in inputs)
    with torch.cuda.device(0):
        expected, got = call(*inputs), call(*other)
        assert torch.cuda.current_device() == 0
    assert all(values.device == torch.device("cuda:1") for values in got)
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
        assert equal(tuple(values.to("cuda:0") for values in got), expected)
    assert torch.isfinite(got[-1]).all()


def test_arguments_on_different_devices_are_errors_that_name_them() -> None:
    student, teacher, epsilon, uniform = batch(3, 100)
    for call, message in [
        (lambda: trbext.solve(student, teacher.cpu(), 0.1), "teacher_logits must be on the device of student_logits"),
        (lambda: trbext.solve(student.cpu(), teacher, 0.1), "teacher_logits must be on the device of student_logits"),
        (lambda: trbext.solve(student, teacher, epsilon.cpu()), "epsilon must be on the device of student_logits"),
        (
            lambda: trbext.sample(student, teacher, 0.1, uniform=uniform.cpu()),
            "uniform must be on the device of student_logits",
        ),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_uniforms_are_drawn_on_the_device_when_none_are_given() -> None:
    student, teacher, _, _ = batch(64, 1000)
    first, again, other = (
        trbext.sample(student, teacher, 0.02, generator=torch.Generator("cuda").manual_seed(seed)).token
        for seed in (3, 3, 4)
    )
    assert first.is_cuda
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def in_a_new_process(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the code in a new process: the environment is read once, at the first launch of a process."""
    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True
    )


SOLVE_ONE_ROW = """
import torch, trbext
generator = torch.Generator().manual_seed(0)
student = 2 * torch.randn(1, 151_936, generator=generator)
teacher = student + torch.randn(1, 151_936, generator=generator)
print(float(trbext.solve(student.cuda().bfloat16(), teacher.cuda().bfloat16(), 0.02).beta))
"""


def test_the_blocks_of_a_row_and_the_prefetch_can_be_set_by_the_environment() -> None:
    expected = in_a_new_process(SOLVE_ONE_ROW)
    assert expected.returncode == 0, expected.stderr
    without = in_a_new_process(SOLVE_ONE_ROW, TRB_CUDA_PREFETCH="0")
    assert without.stdout == expected.stdout
    if torch.cuda.get_device_capability() >= (9, 0):
        with_eight = in_a_new_process(SOLVE_ONE_ROW, TRB_CUDA_RANKS="8")
        assert float(with_eight.stdout) == pytest.approx(float(expected.stdout), rel=1e-3)
    for ranks in ("1", "0", "many"):  # the row does not fit in one block
        refused = in_a_new_process(SOLVE_ONE_ROW, TRB_CUDA_RANKS=ranks)
        assert refused.returncode != 0
        assert "TRB_CUDA_RANKS must be" in refused.stderr


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    from python_tests.cuda.compute_sanitizer import find_sanitizer, sanitize

    if find_sanitizer() is None:
        pytest.skip("compute-sanitizer is neither on PATH nor in $CUDA_HOME/bin or /usr/local/cuda/bin")
    done = sanitize(tool)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
