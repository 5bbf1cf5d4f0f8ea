"""Checks the machine code of the shipped kernels: no spills, no stack, no double precision in the loops over a row,
16-byte loads, and how many instructions a pair of logits costs."""

from __future__ import annotations

import os
import re

import pytest

from benchmarks.models.cuda_counts import MEASURED
from python_tests import sass
from python_tests.cuda import sass_tables as cuda_tables
from python_tests.cuda.sass_tables import LOOPS, PAIRS, row_loop
from python_tests.sass import Kind

pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(sass.missing_tool() is not None, reason=str(sass.missing_tool())),
]

# An H100 issues 39.5 instructions and 4.9 exponentials per lane while its memory delivers a pair of bfloat16 logits.
ISSUE_SLOTS, EXPONENTIALS = 39.5, 4.9
BAR = 36.0  # load, first sweep and one exact sweep, sm_90, 16-bit logits

# TRB_CUDA_ARCHS, which says what is built, also says what is looked at: to compile all kernels for one architecture
# takes half a minute.
NAMED = re.findall(r"\d+", os.environ.get("TRB_CUDA_ARCHS", ""))
ARCHITECTURES = [arch for arch in sass.supported() if not NAMED or arch.removeprefix("sm_") in NAMED]
architectures = pytest.mark.parametrize("arch", ARCHITECTURES if sass.missing_tool() is None else [])


@architectures
@pytest.mark.parametrize("dtype", PAIRS)
def test_no_kernel_spills_or_needs_a_stack(arch: str, dtype: str) -> None:
    cubin = cuda_tables.kernels(arch, dtype)
    for kernel in ("resident_rows", "streamed_rows"):
        found = cubin.resources[cubin.name(kernel)]
        assert found.spill_bytes == 0
        assert found.stack_bytes == 0
        # Two blocks of 256 threads, or one of 512, on a multiprocessor of 65,536 registers.
        assert found.registers <= 128


@architectures
@pytest.mark.parametrize("dtype", PAIRS)
def test_blocks_exchange_without_a_fence_of_the_gpu(arch: str, dtype: str) -> None:
    """Only the barrier of the cluster before the first row empties the first-level cache."""
    for kernel in ("resident_rows", "streamed_rows"):
        cubin = cuda_tables.kernels(arch, dtype)
        function = cubin.function(cubin.name(kernel))
        in_loops = {i.address for loop in sass.loops(function) for i in loop.instructions}
        waits = cuda_tables.waits_for_the_gpu(arch, dtype, kernel)
        assert [i.opcode for i in waits] == ([] if arch == "sm_80" else ["CCTL.IVALL"])
        barriers = [i for i in function.instructions if i.base.startswith("UCGABAR")]
        assert not in_loops.intersection(i.address for i in [*waits, *barriers])
        assert any(i.base == "STAS" for i in function.instructions) == (arch != "sm_80")


@architectures
@pytest.mark.parametrize("kernel", ["assemble_requests", "top_k_rows"])
def test_a_kernel_of_any_dtype_neither_spills_nor_needs_a_stack(arch: str, kernel: str) -> None:
    cubin = cuda_tables.of_any_dtype(arch, kernel)
    found = cubin.resources[cubin.name(kernel)]
    assert (found.spill_bytes, found.stack_bytes) == (0, 0)
    assert found.registers <= 128  # 512 threads of top_k_rows on a multiprocessor of 65,536 registers


@architectures
@pytest.mark.parametrize("dtype", PAIRS)
def test_the_loops_over_a_row_are_what_they_should_be(arch: str, dtype: str) -> None:
    exponentials = {"load": 0, "ends": 2, "direct": 1, "stable": 2, "residual": 2}
    for name in LOOPS:
        loop = row_loop(arch, dtype, name)
        assert loop.per[Kind.FP64] == 0, name
        assert loop.per[Kind.MUFU] == exponentials[name], name
        if name == "load":
            assert loop.loop.widths(Kind.LDG) == {128: 2 * cuda_tables.UNROLLED}
        else:
            assert loop.loop.widths(Kind.LDS) == {128: 2}, name
            assert loop.per[Kind.LDG] == 0, name


@architectures
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_usual_row_is_within_the_budget_of_the_issue_slots(arch: str, dtype: str) -> None:
    usual = [row_loop(arch, dtype, name).per for name in ("load", "ends", "direct")]
    assert sum(per.total for per in usual) <= ISSUE_SLOTS
    assert sum(per[Kind.MUFU] for per in usual) <= EXPONENTIALS
    if arch == "sm_90":
        assert sum(per.total for per in usual) <= BAR


@pytest.mark.skipif("sm_90" not in sass.supported(), reason="this nvcc does not know sm_90")
def test_the_model_of_the_speed_is_fed_with_these_classes() -> None:
    """`test_decision_cycles.py` compares the counts themselves with the shipped kernel."""
    for name, loop in (
        ("load", MEASURED.load),
        ("ends", MEASURED.first),
        ("direct", MEASURED.direct),
        ("stable", MEASURED.stable),
    ):
        per = row_loop("sm_90", "bfloat16", name).per
        assert (per[Kind.MUFU], per[Kind.FP32]) == (loop.mufu, loop.fp32), name
