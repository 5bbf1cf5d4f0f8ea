"""Runs blocks and clusters on the PTX interpreter, and expects exact results and no findings."""

from __future__ import annotations

import gc
import importlib
import weakref
from pathlib import Path

import numpy as np
import pytest

from ptxsim import Device, Kernel, Module, compile_ptx, find_nvcc, launch, unsupported_statements

pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc: put it on PATH or pip install nvidia-cuda-nvcc")
KERNELS = Path(__file__).parents[1] / "kernels"
SCHEDULES = [None, 1, 2, 3]


def run_int(
    kernel: Kernel, threads: int, size: int, seed: int | None = None, initial: np.ndarray | None = None
) -> np.ndarray:
    """Runs one block of a kernel over one int array, and allows no findings."""
    device = Device()
    out = device.empty(size, np.int32, "out") if initial is None else device.upload(initial, "out")
    result = launch(device, kernel, 1, threads, [out], seed=seed)
    assert result.findings == []
    return device.download(out)


T = np.arange(64)
LANE = T % 32
WARP = T - LANE


@pytest.mark.parametrize("seed", SCHEDULES)
def test_shuffles(sm_90: Module, seed: int | None) -> None:
    got = run_int(sm_90.kernels["shuffles"], 64, 11 * 64, seed).reshape(11, 64)
    expected = [T ^ 5, np.where(LANE >= 3, T - 3, T), np.where(LANE < 29, T + 3, T), WARP + 7, WARP + T * 3 % 32]
    eight = T % 8
    # A partner in a later segment is out of range: the lane keeps its own value.
    expected += [
        np.where((LANE ^ 9) // 8 <= LANE // 8, T ^ 9, T),
        np.where(eight >= 2, T - 2, T),
        np.where(T % 16 < 14, T + 2, T),
    ]
    expected += [T - eight + 1, T ^ 15, LANE >= 4]
    for k, column in enumerate(expected):
        np.testing.assert_array_equal(got[k], column, err_msg=f"shuffle {k}")


def mask_of(lanes: np.ndarray) -> int:
    return sum(1 << int(lane) for lane in lanes)


@pytest.mark.parametrize("seed", SCHEDULES)
def test_votes_and_reductions(sm_90: Module, seed: int | None) -> None:
    got = run_int(sm_90.kernels["votes"], 64, 13 * 64, seed).view(np.uint32).reshape(13, 64)
    by_warp = T.reshape(2, 32)
    ballot = np.repeat([mask_of(w[w % 3 == 0] % 32) for w in by_warp], 32)
    match = [mask_of(w[w // 5 == t // 5] % 32) for w in by_warp for t in w]
    odd = [mask_of(w[(w % 2 == t % 2) & (w & 2 > 0)] % 32) for w in by_warp for t in w]
    sums = [w[w % 2 == t % 2].sum() for w in by_warp for t in w]
    whole = 0xFFFFFFFF
    expected = [
        ballot,
        T >= 32,
        T < 32,
        match,
        np.repeat(by_warp.sum(1), 32),
        WARP + 31,
        WARP,
        np.full(64, 255),
        odd,
        sums,
        np.where(T % 4 == 1, 0x22222222, 0),
        np.full(64, whole),
        np.ones(64),
    ]
    for k, column in enumerate(expected):
        if k == 10 and seed is not None:
            continue  # which lanes are converged at activemask is the schedule's choice
        np.testing.assert_array_equal(got[k], np.asarray(column, np.uint32), err_msg=f"vote {k}")


def test_elect_names_one_lane_per_warp(sm_90: Module) -> None:
    got = run_int(sm_90.kernels["elect"], 64, 64)
    np.testing.assert_array_equal(got.reshape(2, 32).sum(1), [1, 1])


@pytest.mark.parametrize("seed", SCHEDULES)
def test_a_shuffle_waits_for_lanes_that_come_along_other_paths(sm_90: Module, seed: int | None) -> None:
    initial = np.arange(128, dtype=np.int32)
    got = run_int(sm_90.kernels["late_lanes"], 64, 0, seed, initial)
    value = T + np.where(T & 1, T * ((T & 7) * ((T & 7) - 1) // 2), 0)
    np.testing.assert_array_equal(got[64:], value[T ^ 1])


@pytest.mark.parametrize("seed", SCHEDULES)
def test_barriers_that_count_and_vote(sm_90: Module, seed: int | None) -> None:
    got = run_int(sm_90.kernels["reducing_barriers"], 128, 384, seed).reshape(3, 128)
    np.testing.assert_array_equal(got[:, 0], [43, 1, 0])
    assert (got == got[:, :1]).all()


def test_neighboring_narrow_stores_are_no_race(sm_90: Module) -> None:
    device = Device()
    out = device.empty(128, np.uint16, "out")
    assert launch(device, sm_90.kernels["neighbors"], 1, 128, [out]).findings == []
    np.testing.assert_array_equal(device.download(out), np.arange(128) * 3)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("seed", [None, 1])
def test_calls_stack_arrays_and_tables(sm_90: Module, sm_80: Module, arch: int, seed: int | None) -> None:
    device = Device()
    out = device.empty(64, np.float32, "out")
    kernel = (sm_90 if arch == 90 else sm_80).kernels["calls"]
    assert launch(device, kernel, 1, 64, [out, 8], arch=arch, seed=seed).findings == []
    table = np.array([1, 2, 0.5, -3])
    for t in range(64):
        x = t * 0.25
        coefficients = table[np.arange(8) % 4] * (np.arange(8) + t % 3) if t & 1 else table
        value = np.polynomial.polynomial.polyval(x if t & 1 else -x, coefficients)
        expected = value * (10 if t & 1 else 2) + coefficients[-1]
        assert device.download(out)[t] == pytest.approx(expected, rel=1e-5, abs=1e-3)


def test_a_struct_parameter_indexed_at_run_time(sm_90: Module) -> None:
    device = Device()
    out = device.empty(64, np.float32, "out")
    struct = np.float32(0.5).tobytes() + np.arange(10, 70, 10, dtype=np.int32).tobytes()
    assert launch(device, sm_90.kernels["parameter_by_index"], 1, 64, [struct, out, 6]).findings == []
    np.testing.assert_array_equal(device.download(out), 5.0 * (T % 6 + 1))


@pytest.mark.parametrize("seed", [None, 1])
def test_switches(sm_90: Module, seed: int | None) -> None:
    initial = np.arange(256, dtype=np.int32) * 5
    got = run_int(sm_90.kernels["switches"], 64, 0, seed, initial)[128:192]
    cases = [
        lambda t: t * 15,
        lambda t: t ^ (t + 32) * 5,
        lambda t: 7,
        lambda t: 320,
        lambda t: t << 3,
        lambda t: -t,
        lambda t: t * 5 // 3,
        lambda t: 1000,
        lambda t: t * t,
        lambda t: -1,
        lambda t: -1,
    ]
    assert got.tolist() == [cases[t % 11](t) for t in range(64)]


@pytest.mark.parametrize("seed", [None, 1])
def test_atomics(sm_90: Module, seed: int | None) -> None:
    device = Device()
    out, sums = device.upload(np.zeros(128, np.int32), "out"), device.upload(np.zeros(1, np.float32), "sums")
    assert launch(device, sm_90.kernels["atomics"], 1, 64, [out, sums], seed=seed).findings == []
    got = device.download(out)
    assert got[:7].tolist() == [max(t * 7 % 101 for t in range(64)), -63, 65535, 64, 5, 9, 64 % 10]
    assert got[8:12].tolist() == [sum(range(r, 64, 4)) for r in range(4)]
    assert got[16:80].tolist() == [1] * 64
    assert device.download(sums)[0] == sum(range(64)) / 2


@pytest.mark.parametrize("bf", [0, 1])
def test_matrix_product(sm_90: Module, bf: int) -> None:
    rng = np.random.default_rng(0)
    a, b, c = rng.integers(-8, 9, (16, 16)) / 4, rng.integers(-8, 9, (16, 8)) / 4, rng.integers(-8, 9, (16, 8)) / 4

    def bits(x: np.ndarray) -> np.ndarray:
        return (x.astype(np.float32).view(np.uint32) >> 16 if bf else x.astype(np.float16).view(np.uint16)).astype(
            np.uint32
        )

    # The register layout of the PTX manual, written element by element.
    registers_a, registers_b = np.zeros((4, 32), np.uint32), np.zeros((2, 32), np.uint32)
    registers_c, expected = np.zeros((4, 32), np.float32), np.zeros((4, 32), np.float32)
    product = a @ b + c
    for lane in range(32):
        group, in_group = lane >> 2, lane & 3
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            column = in_group * 2 + (i & 1) + (8 if i >= 4 else 0)
            registers_a[i // 2, lane] |= bits(a)[row, column] << np.uint32(16 * (i & 1))
        for i in range(4):
            registers_b[i // 2, lane] |= bits(b)[in_group * 2 + (i & 1) + (8 if i >= 2 else 0), group] << np.uint32(
                16 * (i & 1)
            )
            place = group if i < 2 else group + 8, in_group * 2 + (i & 1)
            registers_c[i, lane], expected[i, lane] = c[place], product[place]
    device = Device()
    out = device.empty((4, 32), np.float32, "d")
    pointers = [device.upload(x) for x in (registers_a, registers_b, registers_c)]
    assert launch(device, sm_90.kernels["matrix_product"], 1, 32, [*pointers, out, bf]).findings == []
    np.testing.assert_array_equal(device.download(out), expected)


@pytest.mark.parametrize("seed", SCHEDULES)
@pytest.mark.parametrize("name", ["cluster_sum", "split_cluster_barrier"])
def test_clusters_read_each_others_shared_memory(sm_90: Module, name: str, seed: int | None) -> None:
    device, x = Device(), np.arange(256, dtype=np.float32).reshape(8, 32)
    out = device.empty((8, 32), np.float32, "out")
    cluster = 1 if name == "cluster_sum" else 2
    shared = 0 if name == "cluster_sum" else 128
    result = launch(
        device, sm_90.kernels[name], 8, 32, [device.upload(x), out], shared=shared, cluster=cluster, seed=seed
    )
    assert result.findings == []
    if name == "cluster_sum":
        expected = np.repeat(x.reshape(2, 4, 32).sum(1), 4, axis=0)
    else:
        expected = x[np.arange(8) ^ 1] + np.arange(32)
    np.testing.assert_array_equal(device.download(out), expected)


@pytest.mark.parametrize("seed", SCHEDULES)
def test_clusters_write_each_others_shared_memory(sm_90: Module, seed: int | None) -> None:
    device, x = Device(), np.arange(256, dtype=np.float32).reshape(8, 32)
    out = device.empty((8, 32), np.float32, "out")
    result = launch(device, sm_90.kernels["cluster_push"], 8, 32, [device.upload(x), out], seed=seed)
    assert result.findings == []
    added = np.where(np.arange(8) % 4 == 2, 5 * (1 + 2 + 3 + 4), 0)
    np.testing.assert_array_equal(device.download(out), x[np.arange(8) ^ 3] + added[:, None])


@pytest.mark.parametrize("seed", SCHEDULES)
def test_a_block_may_arrive_at_the_cluster_barrier_and_leave(sm_90: Module, seed: int | None) -> None:
    device, n = Device(), 5
    out = device.empty((4, 32), np.float32, "out")
    assert launch(device, sm_90.kernels["arrives_and_leaves"], 4, 32, [out, n], seed=seed).findings == []
    expected = np.arange(32.0)
    for i in range(n):
        expected = expected * 3 - i
    np.testing.assert_array_equal(device.download(out)[[0, 2, 3]], [expected] * 3)


def test_seeds_draw_different_schedules_reproducibly(sm_90: Module) -> None:
    zeros = np.zeros(33, np.int32)
    orders = [run_int(sm_90.kernels["arrival_order"], 1024, 0, seed, zeros)[1:].tolist() for seed in (None, 1, 2, 1)]
    assert orders[0] == list(range(32))
    assert all(sorted(order) == orders[0] for order in orders)
    assert orders[1] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_block_that_is_no_multiple_of_a_warp(sm_90: Module) -> None:
    device = Device()
    out = device.empty((13, 40), np.int32, "out")
    result = launch(device, sm_90.kernels["votes"], 1, 40, [out])
    assert result.findings == []
    np.testing.assert_array_equal(device.download(out)[4], np.where(np.arange(40) < 32, 31 * 16, sum(range(32, 40))))
    result = launch(device, sm_90.kernels["shuffles"], 1, 40, [device.empty((11, 40), np.int32)])
    assert result.kinds == {"inactive_lane"}


def test_traffic_of_a_kernel_that_reads_its_input_twice(sm_90: Module) -> None:
    device, n = Device(), 256
    x = np.ones(4 * n, np.float32)
    result = launch(
        device, sm_90.kernels["reads_twice"], 1, 128, [device.upload(x, "x"), device.empty(128, np.float32, "out"), n]
    )
    traffic = result.traffic["x"]
    assert result.findings == []
    assert traffic.unique_bytes_loaded == x.nbytes
    assert traffic.bytes_loaded == 2 * x.nbytes
    assert traffic.load_sectors == 2 * traffic.unique_sectors == 2 * x.nbytes // 32
    assert traffic.widths == {16: 2 * n}
    out = result.traffic["out"]
    assert (out.bytes_stored, out.bytes_loaded, out.store_widths, out.store_sectors) == (512, 0, {4: 128}, 16)
    assert result.instructions["st.global.f32"] == 4


def test_traffic_of_strided_loads_shows_wasted_sectors(sm_90: Module) -> None:
    device = Device()
    result = launch(
        device,
        sm_90.kernels["strided"],
        1,
        64,
        [device.upload(np.ones(512, np.float32), "x"), device.empty(64, np.float32)],
    )
    traffic = result.traffic["x"]
    assert (traffic.bytes_loaded, traffic.unique_bytes_loaded, traffic.load_sectors, traffic.unique_sectors) == (
        256,
        256,
        64,
        64,
    )


def test_sectors_count_once_per_warp_instruction_whatever_the_order(sm_90: Module) -> None:
    device = Device()
    x = device.upload(np.ones(64, np.float32), "x")
    result = launch(device, sm_90.kernels["scattered"], 1, 64, [x, device.empty(64, np.float32)])
    sectors = sum(len({t * 37 % 64 // 8 for t in range(first, first + 32)}) for first in (0, 32))
    assert (result.traffic["x"].load_sectors, result.traffic["x"].unique_sectors) == (sectors, 8)


def test_prefetches_are_bounds_checked(sm_90: Module) -> None:
    for past in (0, 4):
        device = Device()
        x, out = device.upload(np.ones(64, np.float32), "x"), device.empty(64, np.float32, "out")
        result = launch(device, sm_90.kernels["prefetches"], 1, 64, [x, out, past])
        assert [f.kind for f in result.findings] == (["out_of_bounds"] * 2 if past else [])
        assert result.traffic["x"].bytes_loaded == 256


def test_unknown_statements_are_refused_by_name() -> None:
    text = """
    .version 9.0
    .target sm_90
    .address_size 64
    .visible .entry odd(.param .u64 p) { .reg .b32 %r<2>; mov.u32 %r1, 0; STATEMENT; ret; }
    """
    statements = [
        "frobnicate.b32 %r1, %r1",
        "add.odd.s32 %r1, %r1, 1",
        "ld.global.odd.u32 %r1, [%r1]",
        "cvt.rn.e4m3x2.f32 %r1, %r1, %r1",
    ]
    for statement in statements:
        module = Module.parse(text.replace("STATEMENT", statement))
        with pytest.raises(NotImplementedError, match=f"line 5: {statement.split()[0]}"):
            launch(Device(), module.kernels["odd"], 1, 32, [0])
        assert [s.split(": ")[1] for s in unsupported_statements(module.kernels["odd"])] == [statement]


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
def test_every_statement_is_understood_on_every_architecture(arch: int) -> None:
    kernels = Module.parse(compile_ptx(KERNELS / "cooperation.cu", arch)).kernels
    assert {name: unsupported_statements(kernel) for name, kernel in kernels.items()} == {name: [] for name in kernels}


def test_a_kernel_that_never_ends_is_stopped() -> None:
    text = ".target sm_90\n.visible .entry loop() { $again: bra.uni $again; }"
    result = launch(Device(), Module.parse(text).kernels["loop"], 1, 32, [], max_steps=100)
    assert result.kinds == {"timeout"}


def test_uploads_can_be_misaligned_and_come_back() -> None:
    device, x = Device(), np.arange(7, dtype=np.uint16)
    a, b = device.upload(x, "a", offset=2), device.upload(x, "b")
    assert (a % 256, b % 256) == (2, 0)
    np.testing.assert_array_equal(device.download(a), x)


def test_a_trace_lists_the_statements_of_the_first_warp_in_order(sm_90: Module) -> None:
    device = Device()
    kernel = sm_90.kernels["shuffles"]
    arguments = [device.empty(11 * 64, np.int32, "out")]
    assert launch(device, kernel, 1, 64, arguments).trace == []
    result = launch(device, kernel, 1, 64, arguments, traced=True)
    names = [statement.name for statement in result.trace]
    assert names[-1] == "ret"
    assert 2 * names.count("shfl.sync.bfly.b32") == result.instructions["shfl.sync.bfly.b32"]  # both warps execute it
    lines = [statement.line for statement in result.trace]
    assert lines == sorted(lines)  # the kernel has no loop


def test_a_machine_that_is_dropped_frees_its_registers_at_once(sm_90: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    launching = importlib.import_module("ptxsim.launch")
    monkeypatch.setattr(launching, "KEPT_LANES", 64)
    gc.disable()
    try:
        run_int(sm_90.kernels["shuffles"], 64, 11 * 64)
        (machine,) = launching._machines.values()
        registers = [weakref.ref(register) for register in machine.state._registers.values()]
        del machine
        assert len(registers) > 10
        assert all(register() is not None for register in registers)
        run_int(sm_90.kernels["votes"], 64, 13 * 64)
        assert all(register() is None for register in registers)
    finally:
        gc.enable()
