"""Executes the CUDA kernels as PTX: accuracy, traffic, schedules, batches, layouts. Needs nvcc but no GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import trbext
from python_tests.cuda import ptx_rows
from python_tests.cuda.planted_bugs import Planted
from python_tests.cuda.ptx_rows import PtxOperators
from python_tests.operators.row_families import families
from trbext import reference

pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(ptx_rows.missing() is not None, reason=str(ptx_rows.missing())),
]

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
NIGHTLY = pytest.mark.nightly


def family_rows(vocab: int, dtype: torch.dtype) -> tuple[list[str], Tensor, Tensor]:
    pairs = {name: pair for name, pair in families(vocab).items() if "bfloat16" not in name}
    student, teacher = (torch.stack([pair[i].float() for pair in pairs.values()]).to(dtype) for i in (0, 1))
    return list(pairs), student, teacher


def ordinary(rows: int, vocab: int, dtype: torch.dtype = BFLOAT16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(vocab)
    student = torch.randn(rows, vocab, generator=generator) * 2
    return student.to(dtype), (student + torch.randn(rows, vocab, generator=generator)).to(dtype)


def check_solution(
    names: list[str], student: Tensor, teacher: Tensor, epsilon: float, beta: Tensor, kl: Tensor
) -> None:
    """Checks that beta is feasible on every row and that no larger beta is."""
    exact = reference.behavior_kl(student, teacher, beta)
    above = reference.behavior_kl(student, teacher, torch.nextafter(beta, torch.tensor(2.0)).clamp(max=1.0))
    for i, name in enumerate(names):
        case = f"{name}, epsilon {epsilon}, beta {beta[i]}, KL {exact[i]}"
        assert exact[i] <= epsilon * (1 + 1e-4) + 1e-7, case
        if beta[i] < 1 and not (beta[i] == 0 and reference.solve(student[i], teacher[i], epsilon).beta == 0):
            assert exact[i] >= epsilon * (1 - 3e-4) or above[i] > epsilon, case
        assert abs(kl[i] - exact[i]) <= 4e-6 + 2e-5 * exact[i], case


@pytest.mark.parametrize(  # first, so that it varies fastest: each kernel is decoded once
    "epsilon", [1e-6, 0.02, 1.0, *(pytest.param(e, marks=NIGHTLY) for e in (1e-4, 1e-2, 0.1))]
)
@pytest.mark.parametrize(
    ("kernels", "vocab", "dtype"),
    [
        (PtxOperators(80, streamed=True), 4099, BFLOAT16),
        pytest.param(PtxOperators(80), 2048, FLOAT16, marks=NIGHTLY),
        (PtxOperators(90, ranks=2), 5000, FLOAT32),
        (PtxOperators(90, ranks=8), 4099, BFLOAT16),
        pytest.param(PtxOperators(90, ranks=4, approx_error=2.0**-22), 16384, BFLOAT16, marks=NIGHTLY),
        (PtxOperators(100, ranks=4), 4099, BFLOAT16),
        pytest.param(PtxOperators(100, streamed=True), 3001, FLOAT32, marks=NIGHTLY),
        pytest.param(PtxOperators(120, streamed=True), 3001, FLOAT32, marks=NIGHTLY),
    ],
    ids=lambda value: None if isinstance(value, int) else str(value),
)
def test_families_meet_the_reference(kernels: PtxOperators, vocab: int, dtype: torch.dtype, epsilon: float) -> None:
    names, student, teacher = family_rows(vocab, dtype)
    uniform = torch.linspace(0.001, 0.999, len(names), dtype=torch.float64)
    drawn = kernels.sample(student, teacher, epsilon, uniform=uniform)
    check_solution(names, student, teacher, epsilon, drawn.beta, drawn.kl)
    cpu = trbext.sample(student, teacher, epsilon, uniform=uniform)
    log_mu = reference.behavior_log_probs(student, teacher, drawn.beta)
    cdf = log_mu.exp().cumsum(-1)
    for i, name in enumerate(names):
        token = drawn.token[i]
        below = cdf[i, token - 1] if token > 0 else torch.zeros(())
        assert below - 3e-6 <= uniform[i] <= cdf[i, token] + 3e-6, name
        assert log_mu[i, token] > -torch.inf, name
        for got, expected in (
            (drawn.log_prob, log_mu[i]),
            (drawn.student_log_prob, student[i].double().log_softmax(-1)),
            (drawn.teacher_log_prob, teacher[i].double().log_softmax(-1)),
        ):
            assert abs(got[i] - expected[token]) <= 1e-5 + 1e-6 * abs(expected[token]) or got[i] == expected[token], (
                name
            )
    assert (drawn.token == cpu.token).float().mean() >= 0.9  # a cell's edge may fall between them


@pytest.mark.parametrize(("vocab", "dtype", "ranks"), [(151936, BFLOAT16, 6), (49152, FLOAT16, 2), (32768, FLOAT32, 3)])
def test_a_resident_row_is_read_once_in_whole_sectors_by_16_byte_loads(
    vocab: int, dtype: torch.dtype, ranks: int
) -> None:
    trb = PtxOperators(90, ranks=ranks)
    student, teacher = ordinary(2, vocab, dtype)
    for epsilon in (0.02, 1e-3):
        uniform = torch.tensor([0.3, 0.9], dtype=torch.float64)
        drawn = trb.sample(student, teacher, epsilon, uniform=uniform)
        assert torch.equal(drawn.token, trbext.sample(student, teacher, epsilon, uniform=uniform).token)
        assert (reference.behavior_kl(student, teacher, drawn.beta) <= epsilon).all()
        for name in ("student", "teacher"):
            traffic = trb.results[-1].traffic[name]
            assert traffic.bytes_loaded == traffic.unique_bytes_loaded == student.nbytes
            assert traffic.load_sectors == traffic.unique_sectors == student.nbytes // 32
            assert set(traffic.widths) == {16}
            assert traffic.bytes_stored == 0


@pytest.mark.parametrize(
    ("arch", "vocab", "dtype"),
    [(90, 4099, BFLOAT16), (90, 1023, FLOAT32), (90, 77, FLOAT16), (100, 4099, BFLOAT16), (100, 1023, FLOAT32)],
)
def test_a_misaligned_or_strided_row_is_read_once_and_gives_the_same_bits(
    arch: int, vocab: int, dtype: torch.dtype
) -> None:
    trb = PtxOperators(arch, ranks=2)
    student, teacher = ordinary(3, vocab, dtype)
    uniform = torch.tensor([0.1, 0.5, 0.99], dtype=torch.float64)
    wide = torch.full((3, 2 * vocab + 3), torch.nan, dtype=dtype)
    wide[:, 3 : 2 * vocab + 3 : 2] = student
    strided, transposed = wide[:, 3 : 2 * vocab + 3 : 2], teacher.t().contiguous().t()
    expected = [*trb.sample(student, teacher, 0.05, uniform=uniform), *trb.blend(student, teacher, 0.05)]
    for name in ("student", "teacher"):
        traffic = trb.results[-1].traffic[name]
        assert traffic.bytes_loaded == traffic.unique_bytes_loaded == student.nbytes
    for pair in ((strided, transposed), (student[:, :], transposed), (strided, teacher)):
        got = [*trb.sample(*pair, 0.05, uniform=uniform), *trb.blend(*pair, 0.05)]
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    one = slice(1, 2)
    alone = [
        *trb.sample(student[one], teacher[one], 0.05, uniform=uniform[one]),
        *trb.blend(student[one], teacher[one], 0.05),
    ]
    assert all(torch.equal(a, b[one]) for a, b in zip(alone, expected, strict=True))


def test_rows_at_odd_addresses_are_read_by_16_byte_loads_all_the_same() -> None:
    for dtype, ranks in ((BFLOAT16, 2), (FLOAT32, 3)):
        trb = PtxOperators(90, ranks=ranks, clusters=4)
        student, teacher = ordinary(8, 16385, dtype)  # each row begins elsewhere within its 16 bytes
        got = trb.solve(student, teacher, 0.05)
        assert torch.equal(got.beta, trb.solve(student.t().contiguous().t(), teacher, 0.05).beta)
        for name in ("student", "teacher"):
            traffic = trb.results[0].traffic[name]
            assert traffic.bytes_loaded == traffic.unique_bytes_loaded == student.nbytes
            assert traffic.widths[16] * 16 > 0.97 * student.nbytes
            assert traffic.load_sectors < 1.15 * traffic.unique_sectors


def test_models_of_different_dtype_meet_as_float32() -> None:
    trb = PtxOperators(90, ranks=2)
    student, teacher = ordinary(3, 1000, FLOAT16)[0], ordinary(3, 1000, BFLOAT16)[1]
    mixed, plain = trb.blend(student, teacher, 0.1), trb.blend(student.float(), teacher.float(), 0.1)
    assert all(torch.equal(a, b) for a, b in zip(mixed, plain, strict=True))


@pytest.mark.parametrize("kernels", [PtxOperators(80, streamed=True), PtxOperators(90, ranks=4)], ids=str)
@pytest.mark.parametrize("seeds", [(0,), pytest.param((1, 2), marks=NIGHTLY)])
def test_schedules_of_warps_change_nothing(kernels: PtxOperators, seeds: tuple[int, ...]) -> None:
    _, student, teacher = family_rows(1000, BFLOAT16)
    student, teacher = student[::4], teacher[::4]
    uniform = torch.linspace(0.05, 0.95, len(student), dtype=torch.float64)
    expected = [*kernels.sample(student, teacher, 0.02, uniform=uniform), *kernels.blend(student, teacher, 0.02)]
    for seed in seeds:
        shuffled = replace(kernels, results=[], seed=seed, clusters=3)
        got = [*shuffled.sample(student, teacher, 0.02, uniform=uniform), *shuffled.blend(student, teacher, 0.02)]
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), seed


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=NIGHTLY), 8])
def test_a_cluster_that_solves_many_rows_solves_each_as_if_by_itself(ranks: int) -> None:
    _, student, teacher = family_rows(1000, BFLOAT16)
    student, teacher = student[::2].clone(), teacher[::2].clone()
    student[3, 5], teacher[6, 7], student[9, :] = torch.nan, torch.inf, -torch.inf  # faulty rows between others
    teacher[11, 3] = 3e4  # a row in double precision between others
    uniform = torch.linspace(0.05, 0.95, len(student), dtype=torch.float64)
    epsilon = torch.linspace(1e-4, 0.3, len(student))
    outcomes = []
    for clusters in (None, 1, 3):
        trb = PtxOperators(90, ranks=ranks, clusters=clusters)
        outcomes.append(
            [*trb.sample(student, teacher, epsilon, uniform=uniform), *trb.blend(student, teacher, epsilon),
             *trb.solve(student, teacher, epsilon)]
        )  # fmt: skip
    for got in outcomes[1:]:
        assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(got, outcomes[0], strict=True))
    assert (outcomes[0][0] == -1).nonzero().flatten().tolist() == [3, 6, 9]


@pytest.mark.parametrize(
    ("arch", "vocab", "dtype", "ranks"),
    [
        (90, 1000, BFLOAT16, 1),
        pytest.param(90, 2999, FLOAT32, 3, marks=NIGHTLY),
        (90, 9001, BFLOAT16, 8),
        pytest.param(100, 2999, BFLOAT16, 2, marks=NIGHTLY),
    ],
)
def test_twice_the_blocks_give_the_same_bits(arch: int, vocab: int, dtype: torch.dtype, ranks: int) -> None:
    """How many blocks hold a row depends on N, and no result may."""
    _, student, teacher = family_rows(vocab, dtype)
    student, teacher = student[::3].clone(), teacher[::3].clone()
    student[1, 5], teacher[2, 3] = torch.nan, 3e4  # a fault, and a row in double precision
    student[4, : vocab // 2] = teacher[4, vocab // 3 : vocab - 7] = -torch.inf  # whole sections of one model are masked
    uniform = torch.linspace(0.05, 0.95, len(student), dtype=torch.float64)
    epsilon = torch.linspace(1e-4, 0.3, len(student))
    usual, wide = (PtxOperators(arch, n, sections=of_each, clusters=2) for n, of_each in ((ranks, 2), (2 * ranks, 1)))
    answers = [
        [*trb.sample(student, teacher, epsilon, uniform=uniform), *trb.blend(student, teacher, epsilon)]
        for trb in (usual, wide)
    ]
    assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(*answers, strict=True))


@NIGHTLY
def test_without_the_prefetch_of_the_next_row_nothing_else_changes() -> None:
    """Tests what TRB_CUDA_PREFETCH=0 launches, which exists to time what the prefetch gains. Rows begin anywhere."""
    _, student, teacher = family_rows(1001, BFLOAT16)
    answers, asked = [], []
    for prefetch in (True, False):
        trb = PtxOperators(90, ranks=2, clusters=1, prefetch=prefetch)
        answers.append(trb.solve(student, teacher, 0.02))
        counts = trb.results[-1].instructions
        asked.append(sum(count for opcode, count in counts.items() if "prefetch" in opcode))
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))
    assert asked[0] > 0 == asked[1]


def test_rows_too_large_for_the_chip_are_streamed_in_the_same_order() -> None:
    """The streamed kernel deals a row to the sixteen warps of one block: only the rounding of its sums differs."""
    student, teacher = ordinary(1, 262144, FLOAT32)
    uniform = torch.tensor([0.77], dtype=torch.float64)
    got = PtxOperators(90, streamed=True).sample(student, teacher, 0.02, uniform=uniform)
    check_solution(["one"], student, teacher, 0.02, got.beta, got.kl)
    assert torch.equal(got.token, trbext.sample(student, teacher, 0.02, uniform=uniform).token)


@pytest.mark.parametrize("epsilon", [1e-3, float("inf"), *(pytest.param(e, marks=NIGHTLY) for e in (0.0, 0.1))])
@pytest.mark.parametrize(("vocab", "ranks"), [(17, 1), pytest.param(300, 1, marks=NIGHTLY), (2500, 4)])
def test_a_grid_of_uniforms_reproduces_mu_to_two_counts(vocab: int, ranks: int, epsilon: float) -> None:
    trb, grid = PtxOperators(90, ranks=ranks), 512 if vocab < 1000 else 128
    uniform = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    for name in ("language model, close", "both masked"):
        student, teacher = families(vocab)[name]
        drawn = trb.sample(student.expand(grid, -1), teacher.expand(grid, -1), epsilon, uniform=uniform)
        counts = torch.bincount(drawn.token, minlength=vocab)
        mu = reference.behavior_log_probs(student, teacher, drawn.beta[0]).exp()
        assert ((counts - grid * mu).abs() <= 2 + 1e-6 * grid).all(), name
        assert (counts[mu == 0] == 0).all(), name


@pytest.mark.parametrize("trb_of", [lambda: PtxOperators(90, ranks=2), lambda: PtxOperators(80, streamed=True)])
@pytest.mark.parametrize("epsilon", [0.0, 0.008, 0.5, float("inf")])
def test_the_ends_of_the_uniform_stay_inside_the_support(trb_of: Callable[[], PtxOperators], epsilon: float) -> None:
    """The same holds if a whole slice lies so far below the maxima that its weights vanish in the frame of the row."""
    trb, vocab = trb_of(), 4096
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, vocab, generator=generator) * scale for scale in (3.0, 1.0))
    student[:, :1], student[:, -1:] = -torch.inf, -torch.inf
    teacher[1, :1500], teacher[1, -1500:] = -torch.inf, -torch.inf
    student[2, : vocab // 2] -= 110.0
    teacher[2, : vocab // 2] -= 110.0
    student[3, :1024] -= 40.0
    teacher[3, :1024] -= 130.0
    for u in (0.0, 2.0**-54, 0.5, 1 - 2.0**-53):
        uniform = torch.full((6,), u, dtype=torch.float64)
        drawn = trb.sample(student, teacher, epsilon, uniform=uniform)
        log_mu = reference.behavior_log_probs(student, teacher, drawn.beta)
        assert ((drawn.token >= 0) & (drawn.token < vocab)).all()
        assert (log_mu.gather(1, drawn.token[:, None]) > -torch.inf).all()


def test_a_uniform_on_the_boundary_takes_the_token_above_it() -> None:
    logits = torch.zeros(8, 4)
    uniform = torch.tensor([k / 4 + offset for k in range(4) for offset in (0.0, 0.25 - 2.0**-50)], dtype=torch.float64)
    for trb in (PtxOperators(90, ranks=2), PtxOperators(80, streamed=True)):
        assert trb.sample(logits, logits, 0.0, uniform=uniform).token.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_slice_of_nothing_but_the_lowest_finite_logit_is_no_reason_for_double_precision() -> None:
    trb = PtxOperators(90, ranks=2)
    student, teacher = ordinary(2, 4096)
    student[:, 2048:] = teacher[:, 2048:] = torch.finfo(BFLOAT16).min
    solved = trb.solve(student, teacher, 0.05)
    assert (solved.sweeps == 2).all()
    assert trb.results[-1].instructions["fma.rn.f64"] < 20_000  # the double-precision path executes ten times as many
    check_solution(["a", "b"], student, teacher, 0.05, solved.beta, solved.kl)


@pytest.mark.parametrize("kernels", [PtxOperators(80), PtxOperators(90, ranks=2)], ids=["sm80", "sm90"])
def test_an_offset_between_float16_models_costs_no_digits(kernels: PtxOperators) -> None:
    """A student without any preference has the lowest number at every token; b - a then has no bit below 2^-8."""
    _, teacher = ordinary(3, 300, FLOAT16)
    student = torch.full_like(teacher, torch.finfo(FLOAT16).min)
    student[2, ::2] = -60_000.0
    for epsilon in (0.02, 0.3):
        solved = kernels.solve(student, teacher, epsilon)
        check_solution(list("abc"), student, teacher, epsilon, solved.beta, solved.kl)


def test_an_offset_between_float32_models_costs_no_digits() -> None:
    student, teacher = ordinary(4, 300, FLOAT32)
    for offset in (1e3, 1e4):
        for epsilon in (1e-3, 0.05):
            got = PtxOperators(90, ranks=2).blend(student, teacher + offset, epsilon)
            check_solution(list("abcd"), student, teacher + offset, epsilon, got.beta, got.kl)
            log_mu = reference.behavior_log_probs(student, teacher + offset, got.beta)
            assert torch.allclose(got.log_probs.double(), log_mu, atol=1e-5, rtol=1e-6)


def test_what_the_student_masks_costs_no_digits_however_likely_it_is_under_the_teacher() -> None:
    """`test_solve.py` has the same for the CPU."""
    generator = torch.Generator().manual_seed(0)
    rows = 64
    student, noise = (torch.randn(rows, 4, generator=generator) for _ in "ab")
    teacher = student + 2 * noise
    student[:, ::2] = -torch.inf
    teacher[:, ::2] += torch.linspace(21, 68, rows)[:, None]
    solved = PtxOperators(90, ranks=1).solve(student, teacher, 5.0)
    kl = reference.behavior_kl(student, teacher, solved.beta)
    assert (solved.beta == 1).all()
    assert ((solved.kl - kl).abs() - 2e-5 * kl).max() <= 3e-6


PLANTED = (
    Planted(
        "no barrier before the warps' sums are added",
        "cuda/kernel/solve_rows.cuh",
        "low);\n  }\n  __syncthreads();\n  if (warp == 0) {\n    // 2.",
        "low);\n  }\n  if (warp == 0) {\n    // 2.",
    ),
    Planted(
        "no wait before what peers send is read",
        "cuda/kernel/solve_rows.cuh",
        "    cluster.wait(&state.arrived[slot], exchange >> 1);\n    decide_first",
        "    __syncwarp();\n    decide_first",
    ),
    Planted(
        "a block ends while others still send to it",
        "cuda/kernel/solve_rows.cuh",
        "kRecordWords),\n                 &state.arrived[slot]);\n",
        'kRecordWords),\n                 &state.arrived[slot]);\n    if (cluster.rank == 1) asm volatile("exit;");\n',
    ),
    Planted(
        "one record for every exchange",
        "cuda/kernel/solve_rows.cuh",
        "slot = exchange & 1;\n  const bool stable",
        "slot = 0;\n  const bool stable",
    ),
    Planted(
        "peers are sent to before they have started",
        "cuda/kernel/solve_rows.cuh",
        "  cluster.start(state.arrived);\n",
        "",
    ),
    Planted(
        "no barrier between the parts' masses and the choice",
        "cuda/kernel/token_draw.cuh",
        "      if (lane == 0) state.part_mass[i] = mass;\n    }\n    __syncthreads();",
        "      if (lane == 0) state.part_mass[i] = mass;\n    }",
    ),
    Planted(
        "vector loads beyond the end",
        "cuda/kernel/row_source.cuh",
        "const int32_t whole = min(chunks.end, row.vocab / kChunkTokens<T>);\n  int32_t chunk = chunks.begin;\n#pragma",
        "const int32_t whole = chunks.end;\n  int32_t chunk = chunks.begin;\n#pragma",
    ),
    Planted(
        "no barrier between the decision and the sweep that it asks for",
        "cuda/kernel/solve_rows.cuh",
        "cluster, slot, lane);\n  }\n  __syncthreads();\n}\n\n// All threads of a block: sweeps as",
        "cluster, slot, lane);\n  }\n}\n\n// All threads of a block: sweeps as",
    ),
)


# A barrier is left out at random on each change too: `python -m python_tests.cuda.without_barriers --random`.
@NIGHTLY
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_a_bug_planted_in_the_kernels_is_found(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = planted.resident_kernel(tmp_path)
    monkeypatch.setattr(ptx_rows, "row_kernel", lambda *_: resident)
    student, teacher = ordinary(4, 16384 + 24)
    uniform = torch.full((4,), 0.5, dtype=torch.float64)

    def on_four_schedules() -> None:
        for seed in (None, 0, 1, 2):
            PtxOperators(90, ranks=2, seed=seed, clusters=2).sample(student, teacher, 0.02, uniform=uniform)

    with pytest.raises(AssertionError, match="Finding"):
        on_four_schedules()
