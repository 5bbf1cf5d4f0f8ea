"""Tests that the interpreter finds planted bugs, finds nothing in their correct twins, and refuses wrong launches."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from ptxsim import Device, Kernel, Module, Result, compile_ptx, find_nvcc, launch

pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc: put it on PATH or pip install nvidia-cuda-nvcc")
KERNELS = Path(__file__).parents[1] / "kernels"
SCHEDULES = [None, 1, 2, 3]
_DEFINED = re.findall(r"^#define (\w+) (\d+)$", (KERNELS / "planted_bugs.cu").read_text(), re.M)
BUGS = {"NONE": 0, **{name: int(number) for name, number in _DEFINED}}


@pytest.fixture(scope="module")
def bugs() -> Module:
    return Module.parse(compile_ptx(KERNELS / "planted_bugs.cu", 90))


def variant(bugs: Module, kernel: str, bug: str) -> Kernel:
    return next(k for name, k in bugs.kernels.items() if f"{len(kernel)}{kernel}ILi{BUGS[bug]}E" in name)


def run_block_kernel(bugs: Module, bug: str, seed: int | None = None) -> tuple[Result, np.ndarray]:
    device, n, blocks = Device(), 5001, 3
    rng = np.random.default_rng(0)
    x = device.upload(rng.integers(-4, 5, n).astype(np.float32), "x")
    out, scratch = (
        device.empty((blocks * 256 + 1, 2), np.float32, "out"),
        device.empty(blocks * 256, np.float32, "scratch"),
    )
    result = launch(device, variant(bugs, "block_kernel", bug), blocks, 256, [x, out, scratch, n], seed=seed)
    return result, device.download(scratch)


def run_cluster_kernel(bugs: Module, bug: str, seed: int | None = None, blocks: int = 8) -> tuple[Result, np.ndarray]:
    device = Device()
    x = device.upload(np.arange(64 * blocks, dtype=np.float32), "x")
    out = device.empty(64 * blocks, np.float32, "out")
    result = launch(device, variant(bugs, "cluster_kernel", bug), blocks, 64, [x, out], cluster=4, seed=seed)
    return result, device.download(out)


@pytest.mark.parametrize("run", [run_block_kernel, run_cluster_kernel])
def test_the_correct_twin_has_no_findings_and_one_result_under_every_schedule(bugs: Module, run) -> None:  # type: ignore[no-untyped-def]
    results = [run(bugs, "NONE", seed) for seed in SCHEDULES]
    for result, values in results:
        assert result.findings == []
        np.testing.assert_array_equal(values, results[0][1])
    if run is run_cluster_kernel:
        sums = np.arange(512).reshape(2, 4, 64).sum(1)
        np.testing.assert_array_equal(results[0][1], np.repeat(2 * sums, 4, axis=0).ravel())


BLOCK_BUGS = {
    "MISSING_SYNCTHREADS": ("race", "ld.shared.f32"),
    "MISSING_SYNCWARP": ("race", "ld.volatile.shared.f32"),
    "OFF_BY_ONE": ("out_of_bounds", "x+20004 of 20004 bytes"),
    "MISALIGNED": ("misaligned", "out+4 of"),
    "PARTIAL_WARP": ("partial_warp", "0x0000ffff"),
    "DIVERGENT_BARRIER": ("divergent_barrier", "bar.sync"),
    "UNINITIALIZED_SHARED": ("uninitialized", "block 0 thread 250"),
    "UNINITIALIZED_GLOBAL": ("uninitialized", "scratch+"),
    "SHARED_OVERFLOW": ("out_of_bounds", "store of 4 bytes at shared+"),
    "SINGLE_BUFFER": ("race", "not ordered after the read"),
    "DEADLOCK": ("deadlock", "bar.sync"),
    "INACTIVE_LANE": ("inactive_lane", "shfl.sync"),
    "OVERLAPPING_STORES": ("race", "st.shared.u16"),
    "TRAP": ("trap", "block 0 thread 0"),
    "EXITED_BEFORE_BARRIER": ("divergent_barrier", "128 have exited"),
}
CLUSTER_BUGS = {
    "MISSING_FIRST_CLUSTER_SYNC": [("race", "not ordered after the write"), ("unstarted_cta", "no cluster barrier")],
    "BLOCK_SYNC_FOR_CLUSTER": [("race", "not ordered after the write"), ("unstarted_cta", "no cluster barrier")],
    "MISSING_LAST_CLUSTER_SYNC": [("dead_cta", "shared memory")],
    "WRITE_AFTER_ARRIVE": [("race", "not ordered after the write")],
}


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("bug", BLOCK_BUGS)
def test_a_planted_bug_in_a_block_is_found(bugs: Module, bug: str, seed: int | None) -> None:
    kind, words = BLOCK_BUGS[bug]
    result, _ = run_block_kernel(bugs, bug, seed)
    found = [f for f in result.findings if f.kind == kind]
    assert found, [f.message for f in result.findings]
    if seed is None:
        assert any(words in f.message for f in found), [f.message for f in found]


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("bug", CLUSTER_BUGS)
def test_a_planted_bug_in_a_cluster_is_found(bugs: Module, bug: str, seed: int | None) -> None:
    result, _ = run_cluster_kernel(bugs, bug, seed)
    # Under a random schedule a peer may also read what its neighbor has not written yet.
    assert result.kinds - ({"uninitialized"} if seed else set()) == {kind for kind, _ in CLUSTER_BUGS[bug]}
    for kind, words in CLUSTER_BUGS[bug]:
        assert any(f.kind == kind and words in f.message for f in result.findings)


def test_shared_memory_of_a_block_that_has_exited_is_gone(bugs: Module) -> None:
    result, _ = run_cluster_kernel(bugs, "EXITED_PEER")
    messages = [f.message for f in result.findings if f.kind == "dead_cta"]
    assert any("of block 1: all its threads have exited" in message for message in messages)


@pytest.mark.parametrize("seed", SCHEDULES)
def test_named_barriers_order_those_who_wait_but_not_those_who_only_arrive(bugs: Module, seed: int | None) -> None:
    device = Device()
    out = device.empty((2, 64), np.int32, "out")
    assert launch(device, variant(bugs, "named_barrier_kernel", "NONE"), 1, 128, [out], seed=seed).findings == []
    expected = 2 * np.arange(63, -1, -1)
    np.testing.assert_array_equal(device.download(out), [expected, expected + 1])
    result = launch(device, variant(bugs, "named_barrier_kernel", "ARRIVE_WITHOUT_WAIT"), 1, 128, [out], seed=seed)
    # Arrivals of both rounds may also add up to one full barrier, and then the consumers wait forever.
    assert result.kinds & ({"race"} if seed is None else {"race", "deadlock"})


def test_an_earlier_reader_is_not_forgotten_over_a_later_one(bugs: Module) -> None:
    device = Device()
    result = launch(device, bugs.kernels["forgotten_reader"], 1, 64, [device.empty(2, np.float32)])
    assert [f.kind for f in result.findings] == ["race"]
    assert "block 0 thread 0: store" in result.findings[0].message
    assert "the read by block 0 thread 32" in result.findings[0].message


@pytest.mark.parametrize("seed", SCHEDULES)
@pytest.mark.parametrize("of_cluster", [False, True])
def test_lanes_that_wait_at_a_barrier_order_nothing_for_the_rest_of_their_warp(
    bugs: Module, of_cluster: bool, seed: int | None
) -> None:
    kernel = next(k for name, k in bugs.kernels.items() if f"stragglerILb{int(of_cluster)}E" in name)
    for ordered in (0, 1):
        device = Device()
        out = device.empty(2, np.int32)
        findings = launch(device, kernel, 2, 64, [out, ordered], cluster=2 if of_cluster else 1, seed=seed).findings
        if ordered:
            assert findings == []
            assert device.download(out).tolist() == [6, 6]
        else:
            assert "race" in {f.kind for f in findings}
            assert any("not ordered after the write by block" in f.message for f in findings)


EXCHANGE_BUGS = {
    "MISSING_EXPECT_TX": [("race", "shared+4 of block 0 is not ordered after the asynchronous write by block 0")],
    "WRONG_PHASE": [("deadlock", "mbarrier.try_wait")],
    "EARLY_EXIT": [("dead_cta", "block 1 may exit before block 0 is done with its shared memory")],
    "READ_BEFORE_WAIT": [("race", "not ordered after the asynchronous write by block")],
    "CLUSTER_BARRIER_FOR_WAIT": [("race", "asynchronous write by block 1 thread 0"), ("dead_cta", "block 0 may exit")],
    "MISSING_INIT_FENCE": [("mbarrier", "no fence.mbarrier_init follows")],
    "TOO_FEW_BYTES": [("deadlock", "mbarrier.try_wait")],
    "SINGLE_SLOT": [("race", "async store of shared+0 of block 1 is not ordered after the read by block 1 thread 0")],
}


def run_exchange_kernel(bugs: Module, bug: str, seed: int | None = None) -> tuple[Result, np.ndarray]:
    device = Device()
    out = device.empty((8, 32), np.float32, "out")
    result = launch(device, variant(bugs, "exchange_kernel", bug), 8, 32, [out], cluster=4, seed=seed, max_steps=20000)
    return result, device.download(out)


@pytest.mark.parametrize("seed", SCHEDULES)
def test_asynchronous_stores_are_exchanged_by_phases_of_mbarriers(bugs: Module, seed: int | None) -> None:
    result, sums = run_exchange_kernel(bugs, "NONE", seed)
    assert result.findings == []
    expected = 0
    for step in range(5):  # each block receives the sum so far, its sender's rank and the round, of 4 blocks
        expected += 4 * expected + 6 + 4 * step
    np.testing.assert_array_equal(sums, np.full((8, 32), expected))


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("bug", EXCHANGE_BUGS)
def test_a_planted_bug_in_an_exchange_is_found(bugs: Module, bug: str, seed: int | None) -> None:
    found = run_exchange_kernel(bugs, bug, seed)[0].findings
    for kind, words in EXCHANGE_BUGS[bug]:
        assert any(f.kind == kind and (seed or words in f.message) for f in found), [f.message for f in found]
    if seed is None and bug not in ("MISSING_EXPECT_TX", "TOO_FEW_BYTES"):
        assert {f.kind for f in found} == {kind for kind, _ in EXCHANGE_BUGS[bug]}


def test_a_bulk_copy_is_ordered_by_its_mbarrier_and_counted_once(bugs: Module) -> None:
    values = np.arange(200, dtype=np.float32)
    for bug in ("NONE", "READ_BEFORE_WAIT"):
        device = Device()
        x, out = device.upload(values, "x"), device.empty(200, np.float32, "out")
        result = launch(device, variant(bugs, "bulk_kernel", bug), 1, 64, [x, out, 200])
        # The thread that began the copy may not read it either.
        assert [(f.kind, f.count) for f in result.findings] == ([] if bug == "NONE" else [("race", 200)])
        np.testing.assert_array_equal(device.download(out), values)
        traffic = result.traffic["x"]
        assert (traffic.bytes_loaded, traffic.load_sectors, traffic.unique_sectors) == (800, 25, 25)


def test_a_barrier_of_a_block_does_not_order_what_another_block_writes(bugs: Module) -> None:
    for ordered in (1, 0):
        device = Device()
        out = device.empty(32, np.float32, "out")
        found = launch(device, bugs.kernels["one_way"], 2, 32, [out, ordered]).findings
        assert [f.kind for f in found] == ([] if ordered else ["race"])
        assert all("load of shared+0 of block 0 is not ordered after the write by block 1" in f.message for f in found)


def test_what_a_thread_has_begun_is_not_ordered_before_what_it_begins_next(bugs: Module) -> None:
    for apart in (1, 0):
        device = Device()
        out = device.empty(1, np.float32, "out")
        found = launch(device, bugs.kernels["begun_twice"], 1, 1, [out, apart], shared=0).findings
        assert [f.kind for f in found] == ([] if apart else ["race"])
        assert all(
            "async store of shared+0 of block 0 is not ordered after the asynchronous write" in f.message for f in found
        )


def test_every_planted_bug_is_tested() -> None:
    assert set(BUGS) == {"NONE", *BLOCK_BUGS, *CLUSTER_BUGS, *EXCHANGE_BUGS, "ARRIVE_WITHOUT_WAIT", "EXITED_PEER"}


def launch_findings(kernel: Kernel, arguments: int, **options: object) -> list[str]:
    device = Device()
    pointers = [device.upload(np.zeros(4096, np.float32)) for _ in range(arguments)]
    settings = {"grid": 8, "block": 32, "args": pointers, **options}
    return [f.message for f in launch(device, kernel, **settings).findings if f.kind == "launch"]  # type: ignore[arg-type]


@pytest.mark.parametrize(("arch", "limit"), [(80, 163), (86, 99), (90, 227), (100, 227), (120, 99)])
def test_too_much_shared_memory_is_refused(sm_80: Module, arch: int, limit: int) -> None:
    kernel = sm_80.kernels["neighbors"]  # 256 bytes of static shared memory
    bytes_left = limit * 1024 - kernel.shared_bytes
    assert kernel.shared_bytes == 256
    assert launch_findings(kernel, 1, grid=1, arch=arch, shared=bytes_left) == []
    assert "bytes of shared memory per block" in launch_findings(kernel, 1, grid=1, arch=arch, shared=bytes_left + 1)[0]


def test_a_launch_sees_no_shared_memory_beyond_its_own_size(sm_90: Module) -> None:
    """Launches of unlike sizes share a machine, whose memory is larger."""
    kernel = sm_90.kernels["split_cluster_barrier"]  # 32 floats of static and 32 of dynamic shared memory

    def findings(shared: int) -> list[tuple[str, str]]:
        device = Device()
        x, out = device.upload(np.zeros(64, np.float32)), device.empty(64, np.float32)
        result = launch(device, kernel, 2, 32, [x, out], shared=shared, cluster=2)
        return [(finding.kind, finding.message) for finding in result.findings]

    assert findings(128) == []
    small = findings(124)
    assert {kind for kind, _ in small} == {"out_of_bounds"}
    assert all("4 bytes at shared+252 of 252" in message for _, message in small)
    assert findings(2048) == findings(128) == []


def test_launch_limits(sm_90: Module, sm_80: Module) -> None:
    shuffles, cluster_sum = sm_80.kernels["shuffles"], sm_90.kernels["cluster_sum"]
    assert launch_findings(shuffles, 1, grid=1) == []
    assert "clusters begin with sm_90" in launch_findings(shuffles, 1, arch=80, cluster=2)[0]
    assert "at most 1024" in launch_findings(shuffles, 1, block=1056)[0]
    assert "at most 8 allowed" not in launch_findings(shuffles, 1, grid=8, cluster=8)
    assert "a cluster of 16 blocks" in launch_findings(shuffles, 1, grid=16, cluster=16)[0]
    assert "requires (4, 1, 1)" in launch_findings(cluster_sum, 2, cluster=2)[0]
    assert "not divisible" in launch_findings(cluster_sum, 2, grid=6)[0]
    assert "does not run there" in launch_findings(cluster_sum, 2, arch=80)[0]
