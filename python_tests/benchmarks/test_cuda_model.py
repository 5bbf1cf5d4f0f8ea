"""Tests that benchmarks/models/cuda_model.py obeys the roofline, every pipe and Little's law, and is monotone."""

from __future__ import annotations

import csv
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.models import before_after, cuda_model
from benchmarks.models.cuda_architectures import A100, ARCHITECTURES, B200, H100, KB, Architecture
from benchmarks.models.cuda_counts import ASSUMED, MEASURED, Counts, Loop, read_chip
from benchmarks.models.cuda_model import Kernel, predict
from benchmarks.models.cuda_shapes import Shape, shape_of

V = 151_936
NOTHING = Counts(Loop(0.01), Loop(0.01), Loop(0.01), Loop(0.01), decision_cycles=0, row_cycles=0, row_instructions=0)
HUGE = replace(H100, shared_sm=4000 * KB, shared_cta=4000 * KB)


def random_cases(count: int = 300) -> list[tuple[Architecture, Kernel, int, int]]:
    draw = random.Random(0)
    found = []
    for _ in range(count):
        gpu = draw.choice((H100, B200))
        counts = Counts(
            *(Loop(draw.uniform(1, 40), mufu=draw.uniform(0, 4), fp32=draw.uniform(0, 20)) for _ in range(4)),
            decision_cycles=draw.uniform(0, 5000),
            row_cycles=draw.uniform(0, 3000),
            row_instructions=draw.uniform(0, 8000),
        )
        kernel = Kernel(
            counts, draw.uniform(1, 4), draw.random() < 0.5, draw.choice((6, 8)), prefetched=draw.random() < 0.5
        )
        found.append((gpu, kernel, draw.choice((32_768, V)), draw.choice((1, 5, 32, 43, 256, 1000, 4096))))
    return found


def test_no_resource_is_overdrawn_and_no_time_is_below_the_roofline() -> None:
    for gpu, kernel, vocab, rows in random_cases():
        p = predict(gpu, kernel, vocab, rows)
        assert 0 < p.roofline_percent < 100
        for busy in (p.memory_busy, p.issue_busy, p.mufu_busy, p.fp32_busy):
            assert 0 <= busy <= 1 + 1e-9
        assert p.time_us > p.residence_us
        phases = p.load_cycles + p.first_cycles + p.exact_cycles + p.decision_cycles
        assert phases == pytest.approx(p.residence_us * gpu.clock_ghz * 1e3, rel=1e-6)
        assert min(p.load_cycles, p.first_cycles, p.exact_cycles) >= 0
        assert 0 <= p.overlap <= kernel.ctas_per_sm + 1e-9


def test_time_is_monotone_in_everything() -> None:
    for gpu, kernel, vocab, rows in random_cases(100):
        time = predict(gpu, kernel, vocab, rows).time_us
        more = kernel.counts
        slower = {
            "rows": (gpu, kernel, vocab, rows + 1),
            "sweeps": (gpu, replace(kernel, sweeps=kernel.sweeps + 0.3), vocab, rows),
            "vocab": (gpu, kernel, vocab + 64, rows),
            "bandwidth": (replace(gpu, memory_gb_per_s=gpu.memory_gb_per_s * 0.8), kernel, vocab, rows),
            "clock": (replace(gpu, clock_ghz=gpu.clock_ghz * 0.8), kernel, vocab, rows),
            "first": (gpu, replace(kernel, counts=replace(more, first=Loop(60, 6, 60))), vocab, rows),
            "decision": (
                gpu,
                replace(kernel, counts=replace(more, decision_cycles=more.decision_cycles + 100)),
                vocab,
                rows,
            ),
        }
        for name, arguments in slower.items():
            assert predict(*arguments).time_us >= time * (1 - 1e-9), (name, gpu.name, kernel, vocab, rows)
        assert predict(*slower["decision"]).time_us > time
        assert predict(*slower["bandwidth"]).time_us > time
        if kernel.prefetched:
            unprefetched = predict(gpu, replace(kernel, prefetched=False), vocab, rows).time_us
            assert (
                unprefetched > time if rows > gpu.clusters(kernel.cluster, kernel.ctas_per_sm) else unprefetched == time
            )
        if rows > 1:
            issue = replace(kernel, counts=replace(more, row_instructions=more.row_instructions + 1000))
            assert predict(gpu, issue, vocab, rows).time_us >= time


def test_without_work_and_waiting_the_roofline_is_reached() -> None:
    # Enough rows in flight that latency cannot matter.
    many = replace(HUGE, shared_sm=60_000 * KB, cache_gb_per_s=1e6)
    p = predict(many, Kernel(NOTHING, cluster=8, ctas_per_sm=32), V, 100_000)
    assert p.roofline_percent > 97
    assert p.bound == "memory"
    faster = predict(
        replace(many, memory_gb_per_s=2 * many.memory_gb_per_s), Kernel(NOTHING, ctas_per_sm=32), V, 100_000
    )
    assert faster.time_us == pytest.approx(p.time_us / 2, rel=0.05)


@pytest.mark.parametrize(
    ("loop", "bound", "cycles_per_pair"),
    [
        (Loop(300), "issue", 300 / (4 * 32 * ASSUMED.issue_efficiency[0])),
        (Loop(100, mufu=60), "mufu", 60 / (16 * ASSUMED.mufu_efficiency)),
        (Loop(300, fp32=290), "issue", 300 / (4 * 32 * ASSUMED.issue_efficiency[0])),
    ],
)
def test_a_pipe_with_far_too_much_work_sets_the_time(loop: Loop, bound: str, cycles_per_pair: float) -> None:
    p = predict(H100, Kernel(replace(NOTHING, first=loop), sweeps=1.0), V, 4096)
    assert p.bound == bound
    expected = 4096 * V * cycles_per_pair / 128  # 4 clusters of 8 on each GPC of 16 or 18 SMs leave some idle
    assert p.time_us * 1e3 * H100.clock_ghz == pytest.approx(expected, rel=0.1)


def test_half_as_many_float32_lanes_bind_on_an_a100() -> None:
    counts = replace(NOTHING, first=Loop(2000, fp32=1800))
    narrow = predict(A100, Kernel(counts, sweeps=1.0, cluster=1, ctas_per_sm=1), 32_768, 10_000)
    wide = predict(replace(A100, fp32_lanes=128), Kernel(counts, sweeps=1.0, cluster=1, ctas_per_sm=1), 32_768, 10_000)
    assert narrow.bound == "fp32"
    assert wide.bound == "issue"
    assert narrow.time_us / wide.time_us == pytest.approx((90 / 64) / (100 / 96), rel=0.05)


def test_long_decisions_are_little_s_law() -> None:
    counts = replace(NOTHING, decision_cycles=1e6)
    p = predict(H100, Kernel(counts, sweeps=3.0), V, 3200)
    assert p.bound == "latency"
    assert p.rows_in_flight == 32
    assert p.time_us * 1e3 * H100.clock_ghz == pytest.approx(3200 / 32 * 3e6, rel=0.01)


def test_clusters_lie_within_a_gpc() -> None:
    assert H100.sms == 132
    assert [H100.clusters(8, 2), H100.clusters(6, 2), H100.clusters(1, 2), H100.clusters(16, 1)] == [32, 42, 264, 8]
    assert shape_of(H100, V, 2, 4096) == Shape(6, 2, 2)
    wide = [rows for rows in range(1, 300) if shape_of(H100, V, 2, rows) == Shape(12, 2, 1)]
    assert wide == [*range(1, 19), *range(43, 55)]  # one turn, and three in the place of two
    assert shape_of(H100, V, 4, 4096) == Shape(12, 2, 1)  # two on an SM, and as many rows in flight as in 6 alone
    assert shape_of(H100, 262_144, 4, 1) == Shape(10, 1, 1)
    assert shape_of(A100, V, 2, 1) is None


def test_few_rows_take_the_time_of_one_and_full_turns_add_up() -> None:
    kernel = Kernel()
    one, few, full, two = (predict(H100, kernel, V, rows) for rows in (1, 2, 32, 64))
    assert few.time_us < 1.05 * one.time_us
    assert (few.rows_in_flight, full.rows_in_flight, two.rows_in_flight) == (2, 32, 32)
    assert two.time_us - ASSUMED.launch_us == pytest.approx(2 * (full.time_us - ASSUMED.launch_us))


def test_small_budgets_take_the_longer_sweep() -> None:
    direct, stable = (predict(H100, Kernel(sweeps=2.0, stable=stable), V, 256) for stable in (False, True))
    assert direct.instructions_per_pair == MEASURED.load.issue + MEASURED.first.issue + MEASURED.direct.issue
    assert stable.instructions_per_pair == MEASURED.load.issue + MEASURED.first.issue + MEASURED.stable.issue
    assert direct.mufu_per_pair == MEASURED.first.mufu + MEASURED.direct.mufu
    assert stable.time_us > direct.time_us


@pytest.mark.parametrize(
    ("gpu", "kernel"), [(H100, Kernel(cluster=4)), (A100, Kernel(cluster=8)), (H100, Kernel(cluster=17))]
)
def test_what_does_not_fit_is_an_error_that_says_how_much_does(gpu: Architecture, kernel: Kernel) -> None:
    message = f"{gpu.name}: a row pair must fit in a cluster of at most {gpu.largest_cluster}, got 607744 bytes in"
    with pytest.raises(ValueError, match=message):
        predict(gpu, kernel, V, 1)


@pytest.mark.parametrize(("rows", "sweeps"), [(0, 2.0), (1, 0.5)])
def test_rows_and_sweeps_below_one_are_errors(rows: int, sweeps: float) -> None:
    with pytest.raises(ValueError, match=f"rows and sweeps must be at least 1, got {rows} and {sweeps}"):
        predict(H100, Kernel(sweeps=sweeps), V, rows)


def test_the_command_marks_everything_as_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpu", "H100", "A100", "--vocab", "32768", "151936", "--rows", "1", "256", "--output"]
    assert cuda_model.main([*arguments, str(tmp_path / "new")]) == 0
    shown = capsys.readouterr().out
    assert "MODEL, not a measurement" in shown
    assert all(gpu.name in shown for gpu in ARCHITECTURES.values())
    with (tmp_path / "new" / "cuda_model.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert all(line["kind"] == "MODEL, not a measurement" for line in lines)
    found = {(line["gpu"], line["vocab"], line["rows"], line["stable"]) for line in lines}
    shapes = [(H100.name, "32768"), (H100.name, str(V)), (A100.name, "32768")]  # an A100 has no clusters
    assert found == {(*shape, *of) for shape in shapes for of in itertools.product(["1", "256"], ["False", "True"])}


def test_the_command_says_what_does_not_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cuda_model.main(["--cluster", "3", "--gpu", "H100", "--output", str(tmp_path)]) == 2
    assert "a row pair must fit in a cluster of at most 16, got 607744 bytes in 3 CTAs" in capsys.readouterr().err
    assert cuda_model.main(["--gpu", "A100", "--output", str(tmp_path)]) == 2
    assert "no row of these fits" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


CHIP = {
    "gpu": "NVIDIA Test", "capability": "90", "multiprocessors": 100, "l2_bytes": 50 * 2**20,
    "shared_bytes_per_multiprocessor": 228 * 1024, "clock_ghz": 2.0, "copy_gb_per_s": 2500.0, "launch_us": 2.0,
    "load_latency_cycles": {"device": 800.0, "cache": 300.0},
    "stream": {"device": {"start_cycles": 900.0, "bytes_per_cycle": 40.0},
               "cache": {"start_cycles": 400.0, "bytes_per_cycle": 60.0}, "every_multiprocessor": {"gb_per_s": 5000.0}},
    "clusters_at_once": {"101": [200] * 5 + [31] + [25] * 10, "107": [200] * 5 + [30] + [24] * 10, "220": [100] * 16},
    "sweep_cycles_per_pair": {"1": {"first": 0.25, "direct": 0.25, "stable": 0.5},
                              "2": {"first": 0.3, "direct": 0.2, "stable": 0.6}},
    "decision": {"solve_us": 14.15, "empty_launch_us": 2.5, "sweeps": 2.0},
}  # fmt: skip


@pytest.fixture
def chip_file(tmp_path: Path) -> Path:
    path = tmp_path / "chip.json"
    path.write_text(json.dumps(CHIP), encoding="utf-8")
    return path


def test_a_chip_file_replaces_what_is_assumed(chip_file: Path) -> None:
    gpu, chip, counts = read_chip(chip_file)
    assert (gpu.name, gpu.sms, gpu.clock_ghz, gpu.memory_gb_per_s) == ("NVIDIA Test", 100, 2.0, 2500.0)
    assert (gpu.clusters(6, 2), gpu.clusters(8, 2), gpu.clusters(6, 1)) == (30, 24, 100)
    assert (chip.load_cycles, chip.load_rate, chip.prefetched_cycles, chip.prefetched_rate) == (900, 40, 400, 60)
    assert chip.launch_us == 2.5  # of first light, which hides the host as it does when it times the kernels
    one, two = chip.issue_efficiency
    issue = MEASURED.first.issue + MEASURED.direct.issue
    assert one == pytest.approx(issue / 32 / (4 * 0.5))
    assert two == pytest.approx(2 * one)
    # (14.15 - 2.5) us at 2 GHz are 23,300 cycles, 300 of them the row's loads, for two sweeps.
    assert counts.decision_cycles == pytest.approx((23_000 - MEASURED.row_cycles) / 2)
    assert gpu.cache_gb_per_s == 5000


def test_the_refitted_model_gives_back_the_row_it_was_fitted_to(chip_file: Path) -> None:
    """The model agrees on the row of 256 logits per block that first light times, up to about 1,000 cycles for its load
    and loops."""
    gpu, chip, counts = read_chip(chip_file)
    row = predict(gpu, Kernel(counts, sweeps=2.0, cluster=6, prefetched=True, chip=chip), 6 * 256, 1)
    assert row.time_us == pytest.approx(14.15, abs=0.5)


def test_the_model_is_refitted_by_one_command(
    chip_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cuda_model.main(["--chip", str(chip_file), "--rows", "256", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "NVIDIA Test" in printed
    assert "decision_cycles" in printed
    with (tmp_path / "cuda_model.csv").open(newline="") as file:
        assert {line["gpu"] for line in csv.DictReader(file)} == {"NVIDIA Test"}


def test_a_probe_without_timed_decisions_keeps_the_assumed_ones(chip_file: Path) -> None:
    chip_file.write_text(json.dumps({k: v for k, v in CHIP.items() if k != "decision"}), encoding="utf-8")
    assert read_chip(chip_file)[2] == MEASURED


@pytest.mark.parametrize("missing", ["stream", "copy_gb_per_s", "sweep_cycles_per_pair", "gpu"])
def test_a_file_that_is_no_probes_is_refused_by_what_it_lacks(
    missing: str, chip_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chip_file.write_text(json.dumps({k: v for k, v in CHIP.items() if k != missing}), encoding="utf-8")
    assert cuda_model.main(["--chip", str(chip_file)]) == 2
    error = capsys.readouterr().err
    assert str(chip_file) in error
    assert missing in error


def test_a_chip_file_that_is_not_there_or_not_json_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.json").write_text("no json", encoding="utf-8")
    for name in ("absent.json", "text.json"):
        assert cuda_model.main(["--chip", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert name in error


def test_what_the_last_change_gains_is_printed_for_every_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert before_after.main([]) == 0
    assert "MODEL, not a measurement" in capsys.readouterr().out
    for gpu in (H100, B200):
        for vocab, element_bytes, rows in itertools.product(before_after.VOCABS, (2, 4), before_after.ROWS):
            before, after = before_after.times(gpu, vocab, element_bytes, rows, ASSUMED)
            assert after is not None
            assert before is None or after < before, (gpu.name, vocab, element_bytes, rows)
            assert (before is None) == (vocab == 262_144 and element_bytes == 4)
    assert before_after.main(["--issue-efficiency", "0"]) == 2
    assert "--issue-efficiency must be above 0 and at most 1, got 0.0" in capsys.readouterr().err
