"""Times a copy and an empty launch, then solve and sample for each N and V beside two log_softmax."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import trbext
from trbext.results import Verification

from ..harness.rows import language_model_rows
from ..operators.cuda_timing import Clock, CpuClock, CudaClock, copy_rate

EPSILON, SMALL = 0.02, 0.01
V = 151_936
BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
CASES: tuple[tuple[int, int, torch.dtype], ...] = (
    *((n, V, BFLOAT16) for n in (1, 8, 32, 42, 43, 64, 256, 1024, 4096)),  # 42 rows fill an H100, if the model is right
    *((256, v, BFLOAT16) for v in (32_768, 128_256, 262_144)),
    *((n, v, FLOAT32) for n in (1, 256) for v in (32_768, V, 262_144)),
)
CPU_CASES = ((1, 4096, BFLOAT16), (4, 4096, FLOAT32))
VERIFY_REQUESTS, VERIFY_ROWS = 64, 5  # four drafts and the bonus token
COLUMNS = (
    "dtype", "N", "V", "solve us", "% of the copy", "sample us", "solve at 0.01 us", "sample, graph us",
    "2 log_softmax us", "sweeps",
)  # fmt: skip
DISTINCT = 32  # rows; larger batches repeat them
CHUNK = 256  # bfloat16 logits that a warp reads at a time; with one chunk per block only decisions cost time
RANKS = 6  # blocks that hold a row of 151,936


def clock_of(device: str) -> Clock:
    """Returns the clock that times calls on the device."""
    if device == "cpu":
        return CpuClock()
    return CudaClock(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)


def rows_on(device: str, count: int, vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Makes a pair of rows on a device; more than DISTINCT rows repeat.

    Args:
        device: "cuda" or "cpu".
        count: Rows.
        vocab: Tokens per row.
        dtype: Of both logits.

    Returns:
        student and teacher logits, each [count, vocab].
    """
    student, teacher = (logits.to(device, dtype) for logits in language_model_rows(min(count, DISTINCT), vocab))
    repeated = torch.arange(count, device=device) % len(student)
    return student[repeated], teacher[repeated]


def microseconds(clock: Clock, call: Callable[[], object], *, cold: bool = True, repetitions: int = 30) -> float:
    """Returns the median time of a call. If `cold`, the inputs are not in the second-level cache.

    Args:
        clock: Times the calls.
        call: What to time.
        cold: Whether other data are read before each call.
        repetitions: Timed calls.
    """
    call()
    before = clock.cool if cold else lambda: None
    return 1e6 * statistics.median(clock.seconds(before, call) for _ in range(repetitions))


def report(device: str, output: Path) -> None:
    """Prints Markdown tables, and adds to the chip file the numbers that the model of the kernels reads."""
    clock = clock_of(device)
    repetitions = 3 if device == "cpu" else 30
    copied = copy_rate(clock, megabytes=16 if device == "cpu" else 1024, device=device)
    one = torch.empty(1, device=device)
    empty = microseconds(clock, lambda: one.zero_(), cold=False, repetitions=repetitions)
    print(f"A copy on the device: {copied:.0f} GB/s read and written. An empty launch: {empty:.1f} us.\n")
    decision = time_decisions(device, empty, output)
    # Written first, because a time limit may end this stage.
    add_to_chip_file(output / "chip.json", torch_copy_gb_per_s=copied, decision=decision)

    print("\n| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for count, vocab, dtype in CPU_CASES if device == "cpu" else CASES:
        student, teacher = rows_on(device, count, vocab, dtype)
        uniform = torch.rand(count, dtype=torch.float64, device=device)
        calls: dict[str, Callable[[], object]] = {
            "solve": lambda s=student, t=teacher: trbext.solve(s, t, EPSILON),
            "sample": lambda s=student, t=teacher, u=uniform: trbext.sample(s, t, EPSILON, uniform=u),
            "small": lambda s=student, t=teacher: trbext.solve(s, t, SMALL),
            "peer": lambda s=student, t=teacher: (s.log_softmax(-1), t.log_softmax(-1)),
        }
        spent = {name: microseconds(clock, call, repetitions=repetitions) for name, call in calls.items()}
        replayed = microseconds(clock, clock.capture(calls["sample"])) if count <= 64 else float("nan")
        moved = 2 * count * vocab * dtype.itemsize
        percent = 100 * moved / (spent["solve"] * 1e-6) / 1e9 / copied
        sweeps = float(trbext.solve(student, teacher, EPSILON).sweeps.float().mean())
        numbers = (spent["solve"], percent, spent["sample"], spent["small"], replayed, spent["peer"])
        cells = [str(dtype)[6:], str(count), str(vocab), *(f"{number:.1f}" for number in numbers), f"{sweeps:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
        del student, teacher, uniform, calls
    time_verify(device, clock, repetitions)


def add_to_chip_file(path: Path, **found: object) -> None:
    """Adds `found` to the file of the chip probe, or begins it. The model of the kernels reads both."""
    path.parent.mkdir(parents=True, exist_ok=True)
    probed = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(probed | found, indent=2) + "\n", encoding="utf-8")


def time_verify(device: str, clock: Clock, repetitions: int) -> None:
    """Prints the time of verify on a batch of requests with four drafts each.

    Args:
        device: "cuda" or "cpu".
        clock: Times the calls.
        repetitions: Timed calls.
    """
    requests, vocab = (2, 4096) if device == "cpu" else (VERIFY_REQUESTS, V)
    student, teacher = rows_on(device, requests * VERIFY_ROWS, vocab, BFLOAT16)
    drafts = torch.multinomial(student.float().softmax(-1), 1)[:, 0]
    drafts[VERIFY_ROWS - 1 :: VERIFY_ROWS] = -1
    offsets = torch.arange(0, len(drafts) + 1, VERIFY_ROWS, device=device)
    accept, draw = torch.rand(2, len(drafts), dtype=torch.float64, device=device)
    epsilon = torch.full((requests,), EPSILON, device=device)

    def call() -> Verification:
        return trbext.verify(
            student, teacher, drafts, offsets, epsilon, accept_uniform=accept, draw_uniform=draw, width=VERIFY_ROWS
        )

    emitted = float(call().emitted.float().mean())
    spent = microseconds(clock, call, repetitions=repetitions)
    print(f"\nverify, {requests} requests of {VERIFY_ROWS} rows, V {vocab}, bfloat16: {spent:.1f} us, "
          f"{emitted:.2f} tokens per request.")  # fmt: skip


def time_decisions(device: str, empty_us: float, output: Path) -> dict[str, Any]:
    """Times a row of one chunk per block, in a cluster as large as a row of 151,936 logits needs.

    It runs in another process, because the environment sets the cluster and each process reads it once.

    Args:
        device: "cuda" or "cpu".
        empty_us: Microseconds of an empty launch.
        output: The folder of the results.

    Returns:
        What the model of the kernels reads of it; empty if it could not be timed.
    """
    environment = {**os.environ, "TRB_CUDA_RANKS": str(RANKS)} if device != "cpu" else dict(os.environ)
    command = [sys.executable, "-m", "benchmarks.first_light", "decisions", "--device", device, "--output", str(output)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(f"Decisions were not timed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
        return {}
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    measured["empty_launch_us"] = empty_us
    print(f"One row of {measured['vocab']} logits in {measured['blocks']} blocks, next to nothing but decisions: "
          f"{measured['solve_us']:.1f} us with {measured['sweeps']:.0f} sweeps.")  # fmt: skip
    return measured


def decisions(device: str) -> dict[str, Any]:
    """Returns the timed row's tokens, blocks, microseconds and sweeps, for the process that prints them."""
    vocab = RANKS * CHUNK
    student, teacher = rows_on(device, 1, vocab, BFLOAT16)
    spent = microseconds(clock_of(device), lambda: trbext.solve(student, teacher, EPSILON), cold=False)
    sweeps = float(trbext.solve(student, teacher, EPSILON).sweeps[0])
    return {"vocab": vocab, "blocks": RANKS if device != "cpu" else 1, "solve_us": spent, "sweeps": sweeps}
