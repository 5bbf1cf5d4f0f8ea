"""Tests the estimate of the decisions' cycles on statements that are written here, without nvcc."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.models.decision_trace import decisions_of, surroundings_of
from benchmarks.models.latency_tables import CENTRAL, TABLES, Latencies, of_chip
from benchmarks.models.scoreboard import cycles, reordered
from ptxsim.text.syntax import Instruction

CHIP = {
    "latency_cycles": {
        "dfma": 10.0, "double_division": 150.0, "double_log": 300.0, "ex2": 20.0, "shuffle": 25.0, "shared_load": 28.0,
        "redux": 13.0, "ffma": 4.0, "double_cast": 30.0, "syncthreads": 18.0,
    },
    "meeting_cycles": {
        "store_and_cluster_barrier": {"2": 1.0, "6": 900.0}, "cluster_barrier": {"2": 1.0, "6": 200.0},
        "async_store_and_mbarrier": {"2": 1.0, "6": 310.0},
    },
}  # fmt: skip


def statement(text: str) -> Instruction:
    """Reads `@%p1 fma.rn.f64 %fd1, %fd2, %fd3, %fd4`."""
    words = text.split(" ", 1)
    guard = None
    if words[0].startswith("@"):
        guard, words = words[0].strip("@!"), words[1].split(" ", 1)
    opcode, *modifiers = words[0].split(".")
    operands = tuple(operand.strip() for operand in words[1].split(",")) if len(words) > 1 else ()
    return Instruction(1, text, opcode, tuple(modifiers), operands, guard)


def estimate(*texts: str, table: Latencies = CENTRAL) -> float:
    return cycles([statement(text) for text in texts], table)


def test_a_chain_takes_the_sum_of_its_latencies_and_independent_statements_overlap() -> None:
    one = estimate("fma.rn.f64 %fd1, %fd0, %fd0, %fd0")
    chain = estimate("fma.rn.f64 %fd1, %fd0, %fd0, %fd0", "fma.rn.f64 %fd2, %fd1, %fd0, %fd0")
    apart = estimate("fma.rn.f64 %fd1, %fd0, %fd0, %fd0", "fma.rn.f64 %fd2, %fd0, %fd0, %fd0")
    assert one == CENTRAL.double_issue + CENTRAL.double
    assert chain == 2 * one
    assert apart == one + CENTRAL.double_issue


def test_a_guard_and_an_address_are_waited_for() -> None:
    compare, load = "setp.lt.f64 %p1, %fd1, %fd2", "ld.shared.f32 %f1, [%r1+8]"
    assert estimate(compare, "@%p1 add.f32 %f1, %f2, %f3") > estimate(compare, "add.f32 %f1, %f2, %f3")
    assert estimate("add.s32 %r1, %r2, 1", load) == pytest.approx(2 + CENTRAL.integer_or_float + CENTRAL.shared_load)


def test_moves_and_parameters_are_free_and_branches_and_barriers_stop_the_warp() -> None:
    assert estimate("mov.b64 %rd1, {%r1, %r2}", "ld.param.u64 %rd1, [args]", "cvta.to.global.u64 %rd2, %rd1") == 0
    shuffles = "shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1", "shfl.sync.bfly.b32 %r4, %r5, 1, 31, -1"
    assert estimate(shuffles[0], "mov.b32 %f1, %r1", shuffles[1]) == estimate(*shuffles)  # no move is waited for
    assert estimate(shuffles[0], "mov.b32 %f1, %r1", "add.f32 %f2, %f1, %f1") > estimate(shuffles[0])
    add = "add.f32 %f1, %f2, %f3"
    for text, stop in (
        ("bra $L__1", CENTRAL.branch), ("bar.sync 0", CENTRAL.block_barrier), ("call f", CENTRAL.call),
        ("bar.warp.sync -1", CENTRAL.warp_barrier), ("barrier.cluster.arrive.release.aligned", CENTRAL.fence),
        ("barrier.cluster.arrive.relaxed.aligned", 0.0), ("barrier.cluster.wait.aligned", CENTRAL.cluster_barrier),
        ("mbarrier.try_wait.parity.shared.b64 %p1, [%r1], %r2", CENTRAL.async_exchange),
    ):  # fmt: skip
        assert estimate(text, add) == estimate(add) + stop + 1, text


def test_what_is_done_while_words_are_on_their_way_is_not_waited_for() -> None:
    send = "st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%r1], %rd1, [%r2]"
    wait, work = "mbarrier.try_wait.parity.shared.b64 %p1, [%r1], %r2", "rcp.approx.ftz.f64 %fd1, %fd2"
    assert estimate(send, wait) == estimate(send, work, wait) == 1 + CENTRAL.async_exchange
    assert estimate(wait, work) > estimate(work, wait) - 1 > CENTRAL.async_exchange


def test_an_approximate_reciprocal_costs_a_special_function_and_a_rounded_one_a_division() -> None:
    assert estimate("rcp.approx.ftz.f64 %fd1, %fd2") == 1 + CENTRAL.special_function
    assert estimate("rcp.rn.f64 %fd1, %fd2") > CENTRAL.double_division
    assert estimate("div.rn.f32 %f1, %f2, %f3") > CENTRAL.float_division


def test_the_tables_are_in_order() -> None:
    chain = [
        "fma.rn.f64 %fd1, %fd1, %fd1, %fd1",
        "barrier.cluster.arrive.release",
        "bra $L",
        "div.rn.f64 %fd1, %fd1, %fd1",
    ]
    found = [estimate(*chain, table=TABLES[name]) for name in ("optimistic", "central", "pessimistic")]
    assert found == sorted(found)
    assert estimate(*chain, table=TABLES["double at 1:64"]) > found[1]


def test_statements_move_within_a_block_so_that_the_longest_chain_goes_first() -> None:
    short, chain = "add.f32 %f9, %f8, %f8", ["lg2.approx.f32 %f1, %f0", "ex2.approx.f32 %f2, %f1"]
    block = [statement(text) for text in (short, *chain, "bra $L", short)]
    found = reordered(block, CENTRAL)
    assert [i.text for i in found] == [chain[0], short, chain[1], "bra $L", short]
    assert cycles(found, CENTRAL) < cycles(block, CENTRAL)


def test_a_load_stays_behind_the_stores_before_it() -> None:
    texts = ["st.shared.f32 [%r1], %f1", "ld.shared.f32 %f2, [%r2]", "lg2.approx.f32 %f3, %f2"]
    assert [i.text for i in reordered([statement(text) for text in texts], CENTRAL)] == texts


SWEEP = ["ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [%r9]", "ex2.approx.ftz.f32 %f1, %f2", "bra $L__1"]
MEETING = ["shfl.sync.bfly.b32 %f1, %f1, 1, 31, -1", "barrier.cluster.wait.acquire.aligned", "lg2.approx.f32 %f1, %f1"]
ANSWER = ["st.global.f32 [%rd1], %f1", "ret"]


def test_a_row_is_cut_at_its_pairs_and_its_answer() -> None:
    # Without a meeting of the blocks, two loads belong to the same sweep.
    texts = ["ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1]", *SWEEP, *SWEEP, *MEETING, *SWEEP, *MEETING, *ANSWER]
    found = decisions_of([statement(text) for text in texts])
    assert [[i.text for i in decision.trace] for decision in found] == [MEETING, MEETING]
    assert (found[0].statements, found[0].doubles, found[0].branches) == (3, 0, 0)


@pytest.mark.parametrize("texts", [MEETING + ANSWER, SWEEP + MEETING])
def test_a_trace_without_sweeps_or_an_answer_is_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="a trace must have sweeps and an answer, got"):
        decisions_of([statement(text) for text in texts])


def test_a_chip_file_replaces_what_is_assumed(tmp_path: Path) -> None:
    path = tmp_path / "chip.json"
    path.write_text(json.dumps(CHIP), encoding="utf-8")
    table = of_chip(path)
    assert (table.double, table.double_division, table.double_conversion) == (10, 140, 15)
    assert (table.cluster_barrier, table.fence, table.async_exchange) == (200, 700, 310)
    assert table.branch == CENTRAL.branch  # which the probe does not measure
    path.write_text(json.dumps({"latency_cycles": CHIP["latency_cycles"]}), encoding="utf-8")
    assert of_chip(path).fence == CENTRAL.fence
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"chip.json must be a file of the chip probe, and has no 'latency_cycles'"):
        of_chip(path)


def test_the_rest_of_a_row_lies_around_its_load() -> None:
    load = [
        "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1]",
        "st.shared.v4.u32 [%r9], {%r1, %r2, %r3, %r4}",
        "bra $L__2",
    ]
    row = [*load, "add.f32 %f1, %f1, %f1", *SWEEP, *MEETING, *ANSWER[:1], "add.s64 %rd2, %rd2, 1"]
    found = surroundings_of([statement(text) for text in [*row, *row]])
    assert [[i.text for i in part.trace] for part in found] == [[ANSWER[0], row[-1]], ["add.f32 %f1, %f1, %f1"]]
    with pytest.raises(ValueError, match="a trace must have two rows, got no load after an answer"):
        surroundings_of([statement(text) for text in row])
