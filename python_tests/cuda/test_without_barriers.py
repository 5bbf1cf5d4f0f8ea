"""Tests the tool that leaves out the barriers of the CUDA sources: what it finds, what it counts, and its map."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from python_tests.cuda import without_barriers
from python_tests.cuda.cuda_barriers import Barrier, barriers, barriers_of, without
from python_tests.cuda.without_barriers import SOURCES, TESTS, Witness, disagreements, read_map, what_failed
from python_tests.sass import find_nvcc

KERNEL = """
// A comment with __syncthreads(); and #define NONE __syncwarp()
template <typename T, int kWarps = 8>
__global__ void __launch_bounds__(256, 2) kernel(const T* x) {{
  auto text = "__syncwarp();"; auto c = '"';
  for (int i = 0; i < 1'000; ++i) {{
    if (x[i] > f(i)) {}
  }}
}}
"""


@pytest.mark.parametrize(
    "statement",
    [
        "__syncthreads();",
        "__syncwarp();",
        "__syncwarp(1u << lane);",
        "__syncthreads_or(x > 0);",
        "__threadfence();",
        "__threadfence_block();",
        "__threadfence_system();",
        "cluster.sync(warp);",
        "cooperative_groups::this_cluster().sync();",
        "cg::sync(group);",
        "this_thread_block()->sync();",
        "cooperative_groups::this_cluster().barrier_arrive();",
        "barrier.arrive_and_wait();",
        "cuda::atomic_thread_fence(cuda::memory_order_release, cuda::thread_scope_block);",
        "__pipeline_wait_prior(0);",
        'asm volatile("bar.sync 1, 64;");',
        'asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");',
        'asm volatile("barrier.cluster.arrive;\\n barrier.cluster.wait;" ::: "memory");',
        'asm volatile("barrier.cta.sync 0;");',
        'asm volatile("fence.acq_rel.cluster;" ::: "memory");',
        'asm volatile("fence.proxy.async.shared::cta;");',
        'asm volatile("membar.gl;" ::: "memory");',
        'asm("mbarrier.arrive.shared.b64 _, [%0];" :: "r"(address(box)));',
        'asm volatile("cp.async.wait_all;");',
        'asm volatile("cp.async.bulk.wait_group 0;");',
        'asm volatile("griddepcontrol.wait;" ::: "memory");',
    ],
)
def test_every_spelling_of_a_barrier_is_found_and_can_be_left_out(statement: str) -> None:
    text = KERNEL.format(statement)
    (found,) = barriers_of("cuda/kernel.cuh", text)
    assert found.key == ("cuda/kernel.cuh", "kernel", 1)
    assert found.text == statement
    assert found.line == 7
    assert without(found, text) == KERNEL.format(";")


@pytest.mark.parametrize(
    "statement",
    [
        "x = __shfl_xor_sync(kAllLanes, x, 1);",
        "__ballot_sync(kAllLanes, x > 0);",
        "__reduce_max_sync(kAllLanes, x);",
        'asm volatile("shfl.sync.bfly.b32 %0, %1, 1, 31, -1;" : "=r"(y) : "r"(x));',
        'asm volatile("prefetch.global.L2 [%0];" ::"l"(x));',
        "async(x);",
        "barrier_count(x);",
    ],
)
def test_what_is_no_barrier_is_not_found(statement: str) -> None:
    assert barriers_of("cuda/kernel.cuh", KERNEL.format(statement)) == []


def test_a_barrier_that_is_no_statement_of_its_own_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"csrc/cuda/kernel.cuh:7: a barrier must be a statement of its own, .* got 'if"
    ):
        barriers_of("cuda/kernel.cuh", KERNEL.format("bool any = __syncthreads_or(x > 0);"))


def test_a_barrier_is_named_by_its_function_and_place_there_whatever_its_line() -> None:
    method = """
struct Group {
  int rank;
  __device__ explicit Group(int r) : rank(r) { __syncwarp(); }
  __device__ bool operator()(float a) const {
    if (a > 0) {
      __syncthreads();
    } else __syncwarp();
    return a;
  }
};
"""
    keys = [("a.cuh", "Group::Group", 1), ("a.cuh", "Group::operator()", 1), ("a.cuh", "Group::operator()", 2)]
    assert [barrier.key for barrier in barriers_of("a.cuh", method)] == keys
    shifted = "namespace trb {\n" + KERNEL.format("__syncwarp();") + method + "}\n"
    assert [barrier.key for barrier in barriers_of("a.cuh", shifted)] == [("a.cuh", "kernel", 1), *keys]


def test_the_map_names_a_test_for_each_barrier_and_no_others() -> None:
    assert disagreements(barriers(SOURCES), read_map()) == []
    for test, says in read_map().values():
        file, _, name = test.partition("::")
        (path,) = TESTS.rglob(file)
        assert f"def {name.partition('[')[0]}(" in path.read_text(encoding="utf-8")
        assert says


def test_a_barrier_without_a_test_and_a_test_without_a_barrier_are_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(without_barriers, "find_nvcc", lambda: "nvcc")
    known = read_map()
    first = barriers(SOURCES)[0]
    del known[first.key]
    known["cuda/kernel/token_draw.cuh", "draw", 9] = Witness("test_x.py::test_x", "kind='race'")
    monkeypatch.setattr(without_barriers, "read_map", lambda: known)
    for arguments in ([], ["--random"], ["token_draw.cuh"]):
        assert without_barriers.main(arguments) == 1
        assert capsys.readouterr().err.splitlines() == [
            f"{first}: no test is known to need it",
            "cuda/kernel/token_draw.cuh draw 9: the sources have no such barrier",
            "run `python -m python_tests.cuda.without_barriers --search`",
        ]


def test_without_nvcc_nothing_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(without_barriers, "find_nvcc", lambda: None)
    assert without_barriers.main([]) == 2
    assert capsys.readouterr().err.startswith("nothing left out: nvcc must be")


def test_a_seed_draws_the_same_barrier_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[Barrier] = []
    monkeypatch.setattr(without_barriers, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(without_barriers, "by_map", lambda barrier, *_: drawn.append(barrier))
    assert without_barriers.main(["--random"]) == 0
    seed = capsys.readouterr().out.splitlines()[0].removeprefix("seed ")
    assert without_barriers.main(["--random", "--seed", seed]) == 0
    assert drawn[0] == drawn[1]
    for other in range(20):
        without_barriers.main(["--random", "--seed", str(other)])
    assert len({barrier.key for barrier in drawn}) > 5


FINDING = "AssertionError: [Finding(kind='race', message='line 1: ld.shared.f32', count=1)]"
REPORT = """F
_______________ test_x[2] _______________
E       {error}
=========================== short test summary info ============================
FAILED python_tests/cuda/test_cuda_barriers.py::test_x[2] - {error}
1 failed in 2.00s
"""


def test_only_an_assertion_of_a_test_that_ran_counts() -> None:
    assert what_failed(0, ".\n1 passed in 3.00s\n") is None
    assert what_failed(1, REPORT.format(error=FINDING)) == (
        "python_tests/cuda/test_cuda_barriers.py::test_x[2]",
        FINDING,
    )
    assert what_failed(1, REPORT.format(error="assert 1 == 2")) is not None
    for status, report in (
        (1, REPORT.format(error="RuntimeError: nvcc failed on rows.cu")),
        (
            1,
            REPORT.format(
                error="ValueError: csrc/cuda/kernel/token_draw.cuh must hold the planted text once, got 0 times"
            ),
        ),
        (0, "s\n1 skipped in 3.00s\n"),
        (0, ".s\n1 passed, 1 skipped in 3.00s\n"),
        (4, "ERROR: not found: test_y\n"),
        (5, "no tests ran\n"),
    ):
        with pytest.raises(RuntimeError, match="and not with an assertion"):
            what_failed(status, report)


def test_a_test_must_say_what_the_map_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    barrier = barriers(SOURCES)[0]

    def outcome(failed: tuple[str, str] | Exception | None) -> tuple[int, str]:
        def fails(*_: object) -> tuple[str, str] | None:
            if isinstance(failed, Exception):
                raise failed
            return failed

        monkeypatch.setattr(without_barriers, "fails", fails)
        status = without_barriers.run_by_map([barrier], {barrier.key: Witness("test_x.py::test_x", "kind='race'")})
        return status, capsys.readouterr().out

    status, printed = outcome(("test_x", FINDING))
    assert status == 0
    assert "test_x.py::test_x: kind='race'" in printed
    for failed, words in (
        (None, "NOTICED BY NO TEST: test_x.py::test_x passes without it"),
        (
            ("test_x", "assert 1 == 2"),
            "NOTICED OTHERWISE: test_x.py::test_x must say \"kind='race'\", got 'assert 1 == 2'",
        ),
        (RuntimeError("nvcc failed"), "NOTICED OTHERWISE: nvcc failed"),
    ):
        status, printed = outcome(failed)
        assert status == 1
        assert words in printed


@pytest.mark.ptx
@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc")
def test_a_barrier_that_nothing_needs_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The unneeded barrier is the second of two in sequence."""
    needed = next(barrier for barrier in barriers(SOURCES) if barrier.text == "__syncwarp();")
    sources = Path(shutil.copytree(SOURCES, tmp_path / "csrc"))
    file = sources / needed.file
    text = file.read_text(encoding="utf-8")
    file.write_text(text[: needed.end] + " " + needed.text + text[needed.end :], encoding="utf-8")
    key = (needed.file, needed.function, needed.number + 1)
    needless = next(barrier for barrier in barriers(sources) if barrier.key == key)
    witness = read_map()[needed.key]
    assert without_barriers.run_by_map([needless], {key: witness}, sources) == 1
    assert f"NOTICED BY NO TEST: {witness.test} passes without it" in capsys.readouterr().out
