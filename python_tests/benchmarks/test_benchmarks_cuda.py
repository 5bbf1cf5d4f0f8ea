"""Runs the GPU benchmark without a GPU: arguments, byte counts, bars, table, files, and its course on the CPU."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

import trbext
from benchmarks.harness.correctness import WrongAnswer
from benchmarks.harness.rows import language_model_rows
from benchmarks.harness.timing import Method
from benchmarks.operators import blend_cuda, cuda_results, cuda_timing, peers
from benchmarks.operators.cuda_results import CudaMachine, CudaRecord, model_bytes

ROOT = Path(__file__).resolve().parents[2]
MACHINE = CudaMachine("Some GPU", "90", 132, 50.0, 80.0, 2500.0, "2.13", "13.0", "0.1", "90-real")


def record(method: str, seconds: float | None, rows: int = 256, cache: str = "cold", **changes: object) -> CudaRecord:
    moved = model_bytes(method, rows, 151_936, "bfloat16")
    rate = moved / seconds / 1e9 if seconds else None
    operator = method in cuda_results.OPERATORS
    made = CudaRecord(
        *(151_936, rows, "bfloat16", cache, "call", method, 0.02, seconds, seconds, 5, moved, rate),
        copy_percent=100 * rate / MACHINE.copy_gb_per_s if rate else None,
        sweeps_mean=2.25 if operator else None,
        sweeps_max=3 if operator else None,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_without_a_gpu_one_line_says_so_and_the_exit_code_is_2() -> None:
    if blend_cuda.missing() is None:
        pytest.skip("there is a GPU, and this build has kernels")
    command = [sys.executable, "-m", "benchmarks.operators.blend_cuda"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("benchmarks.operators.blend_cuda: nothing timed: th")


def test_a_build_without_kernels_on_a_machine_with_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(trbext._C, "cuda_compiled", False)
    assert "this build of trbext has no CUDA kernels" in str(blend_cuda.missing())
    assert blend_cuda.main([]) == 2


def test_help_names_units_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        blend_cuda.parse(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    expected_words = ("NATS KL budget", "(default: 0.02)", "[32768, 49152, 151936, 262144]", "4096]", "methods share")
    for expected in expected_words:
        assert expected in text


@pytest.mark.parametrize(
    "arguments", ["--vocab 1", "--rows 0", "--repetitions 2", "--epsilon 0", "--seconds-per-cell 0", "--dtype int8"]
)
def test_arguments_out_of_range_are_refused(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        blend_cuda.parse(arguments.split())
    assert ended.value.code == 2
    assert arguments.split()[0] in capsys.readouterr().err


def test_model_bytes_count_each_input_once_and_the_outputs() -> None:
    student = torch.zeros(3, 1000, dtype=torch.bfloat16)
    uniform = torch.rand(3, dtype=torch.float64)

    def size(tensors: tuple[torch.Tensor, ...]) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    inputs = size((student, student))
    assert model_bytes("solve", 3, 1000, "bfloat16") == inputs + size(trbext.solve(student, student, 0.1))
    assert model_bytes("blend", 3, 1000, "bfloat16") == inputs + size(trbext.blend(student, student, 0.1))
    drawn = trbext.sample(student, student, 0.1, uniform=uniform)
    assert model_bytes("sample", 3, 1000, "bfloat16") == inputs + size((uniform, *drawn))
    top_k = trbext.TopK(torch.arange(64).repeat(3, 1), torch.full((3, 64), -9.0))
    moved = size((student, *top_k, *trbext.solve(student, top_k, 0.1)))
    assert model_bytes(cuda_results.TOP_K, 3, 1000, "bfloat16") == moved
    assert model_bytes("2 log_softmax", 3, 1000, "bfloat16") == inputs + size(peers.two_log_softmax(student, student))
    assert model_bytes("Newton 10", 3, 1000, "float32") == model_bytes("solve", 3, 1000, "float32") == 24_036
    with pytest.raises(KeyError, match="Newton 11"):
        model_bytes("Newton 11", 1, 1, "float32")


def test_bars_are_at_least_256_rows_from_cold_caches() -> None:
    at_half = model_bytes("solve", 256, 151_936, "bfloat16") / (0.5 * 2500e9)
    records = [
        record("solve", at_half * 0.99),
        record("solve", at_half * 9, cache="warm"),
        record("Newton 10", at_half * 101),
        record("Newton compiled", at_half * 14),
        record(cuda_results.TOP_K, at_half * 0.55),
        record("solve", 1.0, rows=64),
    ]
    found = {bar.text: bar for bar in cuda_results.bars(records, 2500.0)}
    assert found["solve, percent of the copy, N = 256 bfloat16"].ratio == pytest.approx(50 / 0.99)
    assert {text: bar.verdict for text, bar in found.items()} == {
        "solve, percent of the copy, N = 256 bfloat16": "met",
        "stretch: solve, percent of the copy, N = 256 bfloat16": "missed",
        "Newton 10 / solve, N = 256 bfloat16": "met",
        "Newton compiled / solve, N = 256 bfloat16": "missed",
        "solve, k = 64 / solve, N = 256 bfloat16": "met",
    }
    more = cuda_results.bars([*records, record("solve", 4 * at_half, rows=1024)], 2500.0)
    assert len(more) == 10
    assert more[5].ratio == pytest.approx(50, rel=1e-3)
    unmeasured = cuda_results.bars([], 2500.0)
    assert [bar.verdict for bar in unmeasured] == ["not measured"] * 5


def test_table_files_and_bars_of_given_records(tmp_path: Path) -> None:
    records = [
        record("solve", 124.44e-6),
        record("sample", 130e-6),
        record("blend", 400e-6),
        record("Newton 10", None, note="left out: not enough GPU memory"),
        record("solve", 60e-6, rows=16, launch="graph"),
        record("solve", 100e-6, cache="warm"),
    ]
    console = Console(width=190, file=StringIO())
    blend_cuda.write(records, MACHINE, tmp_path / "new", console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for expected in ("Some GPU (sm_90, 132 SMs", "2.25, 3", "1250", "50.0", "124", "warm", "graph", "cold"):
        assert expected in shown
    assert "V 151936, N 256, bfloat16, Newton 10: left out: not enough GPU memory" in shown
    assert "solve, percent of the copy, N = 256 bfloat16: 50 (>= 50) met" in shown
    assert "Newton compiled / solve, N = 256 bfloat16: (>= 15) not measured" in shown
    assert (tmp_path / "new" / "blend_cuda.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "new" / "blend_cuda.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(records)
    assert (lines[0]["gpu"], lines[0]["copy_gb_per_s"], lines[0]["median_s"]) == ("Some GPU", "2500.0", "0.00012444")
    assert lines[3]["median_s"] == ""


def test_the_course_on_the_cpu_checks_and_times_every_method(tmp_path: Path) -> None:
    arguments = "--vocab 256 700 --rows 1 70 --dtype float32 bfloat16 --repetitions 3 --seconds-per-cell 0.01"
    options = blend_cuda.parse([*arguments.split(), "--graph-rows", "1"])
    console, clock = Console(width=190, file=StringIO()), cuda_timing.CpuClock()
    records = blend_cuda.run(options, clock, MACHINE.copy_gb_per_s, console, device="cpu")
    methods = set(cuda_results.METHODS) - {"Newton compiled"}  # bars: at one other V only
    lines = {(r.vocab, r.rows, r.dtype, r.cache, r.launch) for r in records}
    assert len(lines) == 2 * 2 * (2 + 4)
    for line in lines:
        found = [r for r in records if (r.vocab, r.rows, r.dtype, r.cache, r.launch) == line]
        assert {r.method for r in found} == methods
        assert all(r.median_s is not None and r.repetitions == 3 and not r.note for r in found)
        for r in found:
            assert r.median_s is not None
            assert r.gb_per_s == pytest.approx(r.model_bytes / r.median_s / 1e9)
            assert r.copy_percent == pytest.approx(100 * r.gb_per_s / 2500)
            assert (r.sweeps_mean is not None) == (r.method in cuda_results.OPERATORS)
    assert clock.cooled > 0
    blend_cuda.write(records, MACHINE, tmp_path, console)


def test_a_wrong_row_in_a_repeated_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    options = blend_cuda.parse(["--vocab", "300", "--rows", "70", "--dtype", "float32", "--repetitions", "3"])
    solve = trbext.solve

    def wrong(*arguments: object) -> object:
        solution = solve(*arguments)  # type: ignore[arg-type]
        if len(solution.beta) == 70:
            solution.beta[69] *= 1.01
        return solution

    monkeypatch.setattr(trbext, "solve", wrong)
    with pytest.raises(WrongAnswer, match=r"trbext\.solve: beta"):
        blend_cuda.run(options, cuda_timing.CpuClock(), 1.0, Console(file=StringIO()), device="cpu")


def test_a_budget_that_does_not_bind_is_refused() -> None:
    options = blend_cuda.parse(["--vocab", "300", "--rows", "4", "--epsilon", "1000"])
    with pytest.raises(SystemExit, match=r"--epsilon 1000\.0 does not bind on every row"):
        blend_cuda.run(options, cuda_timing.CpuClock(), 1.0, Console(file=StringIO()), device="cpu")


def test_what_does_not_fit_is_left_out_and_the_rest_is_timed() -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError

    slow, good = Method("large", too_large), Method("small", lambda: None)
    given = Method("given", too_large, note="left out before")
    cuda_timing.time_rounds([slow, good, given], cuda_timing.CpuClock(), "warm", repetitions=4, seconds=1.0)
    assert slow.note == "left out: not enough GPU memory"
    assert (len(slow.seconds), len(good.seconds), len(given.seconds)) == (0, 4, 0)


def test_cold_calls_come_after_other_data_and_warm_ones_after_themselves() -> None:
    happened: list[str] = []

    class Spy(cuda_timing.CpuClock):
        def cool(self) -> None:
            happened.append("cool")

    for cache, expected in (("cold", ["cool", "call"]), ("warm", ["call", "call"])):
        method = Method("method", lambda: happened.append("call"))
        happened.clear()
        cuda_timing.time_rounds([method], Spy(), cache, repetitions=3, seconds=1.0)
        assert happened[-6:] == 3 * expected


def test_the_copy_counts_bytes_read_and_written() -> None:
    class Fixed(cuda_timing.CpuClock):
        def seconds(self, before: Callable[[], object], call: Callable[[], object]) -> float:
            call()
            return 0.5e-3

    assert cuda_timing.copy_rate(Fixed(), megabytes=1, device="cpu") == pytest.approx(2 * 2**20 / 0.5e-3 / 1e9)


@pytest.mark.parametrize("products", [True, False])
def test_both_ways_to_sum_give_the_same_moments(products: bool) -> None:
    student, teacher = language_model_rows(3, 500)
    moments = peers.Moments(3, 500)
    moments.products = products
    moments.load(student, teacher, 3)
    beta = torch.tensor([0.0, 0.4, 1.0])
    x, d = student.double().log_softmax(-1), teacher.double().log_softmax(-1) - student.double().log_softmax(-1)
    weights = (x + beta[:, None] * d).exp()
    for _ in range(2):  # the first call must not have spoiled what the second needs
        for order, got in enumerate(moments.at(beta)):
            torch.testing.assert_close(got.double(), (weights * d**order).sum(-1), rtol=1e-4, atol=1e-5)
