"""Executes verify on CUDA as PTX: law, faults, offsets, traffic, schedules, planted bugs. Needs nvcc but no GPU."""

from __future__ import annotations

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
from python_tests.operators.verify_calls import (
    Call,
    assert_follows_the_law,
    of_kind,
    ordinary,
    put,
    ragged,
    same,
    three_requests,
)
from trbext import reference
from trbext.results import Verification

pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(ptx_rows.missing() is not None, reason=str(ptx_rows.missing())),
]

INF, NAN = float("inf"), float("nan")
BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
STREAMED, CLUSTER = PtxOperators(80, streamed=True), PtxOperators(90, ranks=2)
both_ways = pytest.mark.parametrize("kernels", [STREAMED, CLUSTER], ids=["sm80-streamed", "sm90-cluster"])
LARGEST = 1 - 2.0**-53


def decisions(got: Verification) -> list[list[int]]:
    return [got.tokens.tolist(), got.emitted.tolist(), got.accepted.tolist(), got.beta.isnan().tolist()]


def family_call(vocab: int, dtype: torch.dtype, kind: int) -> Call:
    """Returns a call with a draft and a direct row over each family, at budgets and temperatures in turn."""
    pairs = [pair for name, pair in families(vocab).items() if "bfloat16" not in name]
    student, teacher = (torch.stack([pair[i] for pair in pairs]).repeat_interleave(2, 0).to(dtype) for i in (0, 1))
    count = len(pairs)
    call = ragged(
        student.float(),
        teacher,
        [2] * count,
        epsilon=torch.tensor([0.01, 0.0, 0.3, 1e-4, INF]).repeat(count)[:count],
        temperature=torch.tensor([1.0, 0.6, 1.7]).repeat(count)[:count],
        kind=kind,
        direct=0.0,
    )
    drafts = call.draft_tokens.clone()
    drafts[1::2] = -1
    return call.but(student_logits=call.student_logits.to(dtype), draft_tokens=drafts)


@pytest.mark.parametrize(
    ("kernels", "dtype", "kind"),
    [
        (PtxOperators(90, ranks=2, approx_error=2.0**-22), BFLOAT16, 0),
        (STREAMED, FLOAT16, 0),
        (PtxOperators(90, ranks=4, approx_error=2.0**-22), FLOAT32, 1),
        (STREAMED, FLOAT32, 2),
    ],
    ids=["bfloat16-cluster", "float16-streamed", "probabilities-cluster", "scaled-logits-streamed"],
)
def test_every_decision_follows_the_law_over_row_families(kernels: PtxOperators, dtype: torch.dtype, kind: int) -> None:
    call = family_call(700, dtype, kind)
    got = call.by(kernels.verify)
    assert (got.emitted >= 0).all()
    assert (got.emitted > got.accepted).sum() > 10
    assert got.accepted.sum() > 10
    assert_follows_the_law(call, got)


@pytest.mark.parametrize("vocab", [pytest.param(300, marks=pytest.mark.nightly), 2500])
@pytest.mark.parametrize("epsilon", [1e-4, 0.05, 0.5])
def test_a_grid_of_uniforms_reproduces_the_residual_to_two_counts(vocab: int, epsilon: float) -> None:
    """All rows are one row, by indirection; mu lowers the probability of the draft, so that the draft is rejected."""
    grid = 256 if vocab < 1000 else 96
    student, teacher = families(vocab)["language model, close"]
    beta = reference.solve(student, teacher, epsilon).beta.float()
    ratio = (reference.behavior_log_probs(student, teacher, beta) - student.double().log_softmax(-1)).exp()
    zeros = torch.zeros(grid, dtype=torch.int64)
    call = Call(
        student[None], teacher[None], zeros + ratio.argmin(), torch.arange(grid + 1), epsilon,
        torch.full((grid,), LARGEST, dtype=torch.float64), (torch.arange(grid, dtype=torch.float64) + 0.5) / grid,
        width=1, student_rows=zeros, teacher_rows=zeros.int(),
    )  # fmt: skip
    got = call.by(PtxOperators(90, ranks=2).verify)
    assert (got.emitted == 1).all()
    assert (got.accepted == 0).all()
    log_mu = reference.behavior_log_probs(student, teacher, got.beta[0])
    residual = (log_mu.exp() - student.double().softmax(-1)).clamp(min=0)
    counts = torch.bincount(got.tokens[:, 0], minlength=vocab)
    assert ((counts - grid * residual / residual.sum()).abs() <= 2 + 1e-6 * grid).all()
    assert (counts[residual == 0] == 0).all()


@pytest.mark.parametrize(("kernels", "kind"), [(STREAMED, 0), (CLUSTER, 1)], ids=["sm80-streamed", "sm90-cluster"])
def test_rows_in_double_precision_follow_the_law(kernels: PtxOperators, kind: int) -> None:
    student, teacher = ordinary(8, 300, spread=1.5)
    masked = torch.rand(8, 300, generator=torch.Generator().manual_seed(0)) < 0.3
    student[:4] = student[:4].masked_fill(masked[:4], -1e4)
    teacher[3:] = teacher[3:].masked_fill(masked[3:], torch.finfo(torch.float32).min)
    call = ragged(student, teacher, [2] * 4, epsilon=torch.tensor([0.1, INF, 0.5, 0.5]), temperature=1.25, kind=kind)
    call = call.but(accept_uniform=torch.tensor([0.0, LARGEST, LARGEST, 0.5] * 2, dtype=torch.float64))
    assert_follows_the_law(call, call.by(kernels.verify))


@pytest.mark.parametrize("vocab", [900, 200], ids=["several chunks", "one chunk"])
@pytest.mark.parametrize(
    "nothing",
    [
        Planted("in float32", "cuda/kernel/sweep/sweep_terms.cuh", "frame) ? gain : 0.0f;", "frame) ? 0.0f : 0.0f;"),
        Planted("in double", "cuda/kernel/double_row.cuh", "? -::expm1(-above) * mu : 0.0;", "? 0.0 : 0.0;"),
    ],
    ids=lambda nothing: nothing.name,
)
def test_a_rejected_draft_without_a_residual_is_replaced_from_mu(
    nothing: Planted, vocab: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding may leave no token to which mu gives more than the student does; this test makes such a row."""
    student, teacher = (logits.bfloat16() for logits in ordinary(6, vocab))
    if nothing.name == "in double":
        student[:, 7] = -1e4
    drafts = (teacher.float() - student.float())[:, 8:].argmin(-1) + 8
    call = ragged(student, teacher, [1] * 6, epsilon=torch.full((6,), 0.1)).but(
        draft_tokens=drafts, accept_uniform=torch.full((6,), LARGEST, dtype=torch.float64)
    )
    kernel = nothing.resident_kernel(tmp_path)
    drawn = CLUSTER.sample(student, teacher, torch.full((6,), 0.1), uniform=call.draw_uniform)
    ordinarily = call.by(CLUSTER.verify)
    monkeypatch.setattr(ptx_rows, "row_kernel", lambda *_: kernel)
    got = call.by(CLUSTER.verify)
    assert got.accepted.tolist() == [0] * 6
    assert torch.equal(got.tokens[:, 0], drawn.token)
    assert torch.equal(got.beta, drawn.beta)
    assert not torch.equal(got.tokens, ordinarily.tokens)


FAULTY_LOGITS = {0: (NAN, INF), 1: (NAN, INF, -INF, -1e-30), 2: (NAN, INF)}


def faults(kind: int) -> Call:
    """Returns a request of three rows for each fault, which lies in the second of them, and one request without a
    fault."""
    vocab, kinds = 300, len(FAULTY_LOGITS[kind]) + 1
    logits = kinds + 3  # of the student, of the teacher
    count = logits + 17
    student, teacher = ordinary(3 * count, vocab)
    call = ragged(student, teacher, [3] * count, kind=kind, epsilon=torch.full((count,), 0.1),
                  temperature=torch.full((count,), 0.8), direct=0.0)  # fmt: skip
    student, teacher, rows = call.student_logits.clone(), teacher.clone(), torch.arange(3 * count)
    draft, accept, draw = call.draft_tokens.clone(), torch.zeros(3 * count, dtype=torch.float64), call.draw_uniform
    draft[2::3] = -1  # every request draws its last
    student_rows, teacher_rows, epsilon, heat = rows.clone(), rows.clone(), call.epsilon, call.temperature
    assert isinstance(epsilon, Tensor)
    assert isinstance(heat, Tensor)
    for request, value in enumerate(FAULTY_LOGITS[kind]):
        student[3 * request + 1, 200:] = 0.0 if kind == 1 else -INF  # a mask must not hide it
        student[3 * request + 1, 250] = value
    student[3 * kinds - 2] = 0.0 if kind == 1 else -INF
    for request, value in enumerate((NAN, INF)):
        teacher[3 * (kinds + request) + 1, 131] = value
    teacher[3 * (kinds + 2) + 1] = -INF
    row = 3 * logits + 1
    for values, wrong in ((draft, (-2, vocab, 2**40)), (accept, (1.0, -1e-300, NAN)),
                          (student_rows, (-1, 3 * count)), (teacher_rows, (-(2**31), 3 * count))):  # fmt: skip
        for value in wrong:
            values[row] = value
            row += 3
    for value in (1.0, NAN):
        draw[row + 1] = value
        row += 3
    epsilon[row // 3], epsilon[row // 3 + 1], heat[row // 3 + 2], heat[row // 3 + 3] = -0.1, NAN, 0.0, INF
    return call.but(student_logits=student, teacher_logits=teacher, draft_tokens=draft, accept_uniform=accept,
                    draw_uniform=draw, student_rows=student_rows, teacher_rows=teacher_rows)  # fmt: skip


@both_ways
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_faults_are_those_of_the_cpu_and_stay_in_their_requests(kernels: PtxOperators, kind: int) -> None:
    call = faults(kind)
    got, expected = call.by(kernels.verify), call.by(trbext.verify)
    assert decisions(got) == decisions(expected)
    assert (got.emitted == -1).sum() == call.requests - 1
    assert got.emitted[-1] == 3
    assert torch.equal(got.log_probs.isnan(), expected.log_probs.isnan())


def test_more_rows_than_width_and_a_narrower_vocabulary() -> None:
    call = ragged(*ordinary(9, 700), [2, 4, 3], direct=0.0).but(width=3, vocab=500)
    call = call.but(draft_tokens=call.draft_tokens.clamp(max=499), accept_uniform=torch.zeros(9, dtype=torch.float64))
    got = call.by(CLUSTER.verify)
    assert decisions(got) == decisions(call.by(trbext.verify))
    assert got.emitted.tolist() == [2, -1, 3]
    solved = CLUSTER.solve(call.student_logits[:2, :500], call.teacher_logits[:2, :500], torch.full((2,), 0.05))
    assert torch.equal(got.beta[:2], solved.beta)
    assert torch.equal(got.kl[:2], solved.kl)
    narrow = put("draft_tokens", 1, 500)(call).by(CLUSTER.verify)
    assert (narrow.emitted[0], narrow.accepted[0]) == (-1, 1)


def test_beta_and_kl_are_those_of_solve_to_the_bit() -> None:
    for kernels, dtype in ((CLUSTER, BFLOAT16), (STREAMED, FLOAT32)):
        for temperature in (1.0, 0.7):
            student, teacher = (logits.to(dtype) for logits in ordinary(8, 900, spread=1.5))
            epsilon = torch.linspace(1e-4, 0.3, 8)
            call = ragged(student, teacher, [1] * 8, epsilon=epsilon, temperature=temperature)
            got = call.by(kernels.verify)
            beta, kl, _ = kernels.solve(student, teacher, epsilon, temperature=float(torch.tensor(temperature)))
            assert torch.equal(got.beta, beta)
            assert torch.equal(got.kl, kl)


def disordered(requests: int, rows: int, spoiled: int, generator: torch.Generator) -> Tensor:
    offsets = torch.randint(rows + 1, (requests + 1,), generator=generator).sort().values
    for place in torch.randint(requests + 1, (spoiled,), generator=generator).tolist():
        offsets[place] = torch.randint(-3, rows + 4, (), generator=generator)
    return offsets


@both_ways
def test_any_offsets_give_the_rows_that_the_cpu_gives(kernels: PtxOperators) -> None:
    """Calls have up to three times the 32 requests that a warp looks at together, in order or with wrong offsets."""
    persistent = replace(kernels, results=[], clusters=3)
    generator = torch.Generator().manual_seed(0)
    student, teacher = ordinary(40, 5)
    for requests, spoiled in ((1, 0), (40, 0), (80, 1), (80, 3), (33, 12)):
        call = Call(
            student, teacher, torch.zeros(40, dtype=torch.int32), disordered(requests, 40, spoiled, generator),
            torch.rand(requests, generator=generator) * 0.5, torch.rand(40, dtype=torch.float64, generator=generator),
            torch.rand(40, dtype=torch.float64, generator=generator), width=40,
            temperature=torch.rand(requests, generator=generator) + 0.5,
        )  # fmt: skip
        assert decisions(call.by(persistent.verify)) == decisions(call.by(trbext.verify)), call.offsets.tolist()


def test_a_block_does_not_search_the_requests_of_its_earlier_rows_again() -> None:
    """One block judges 12 rows, each of whose requests is followed by 31 without rows."""
    student, teacher = ordinary(12, 5)
    kernels = PtxOperators(90, clusters=1)
    ragged(student, teacher, [1, *[0] * 31] * 12).by(kernels.verify)
    two_offsets_of_each_lane = 2 * 8 * 32
    searches = kernels.results[0].traffic["offsets"].bytes_loaded // two_offsets_of_each_lane
    assert searches < 2 * 12  # the last one and the next one for each row


@pytest.mark.parametrize(("kind", "dtype"), [(0, BFLOAT16), (0, FLOAT32), (1, FLOAT32)])
def test_each_logit_is_read_once_and_a_draft_s_once_more(kind: int, dtype: torch.dtype) -> None:
    vocab, ranks = 32768, 3
    student, teacher = (logits.to(dtype) for logits in ordinary(3, vocab))
    call = ragged(of_kind(student, torch.ones(3), kind).to(dtype), teacher, [3], epsilon=0.02, kind=kind, direct=0.0)
    call = call.but(accept_uniform=torch.tensor([0.0, 0.0, LARGEST], dtype=torch.float64))
    kernels = PtxOperators(90, ranks=ranks)
    got = call.by(kernels.verify)
    assert_follows_the_law(call, got)
    assert (got.emitted, got.accepted) == (3, 2)  # the last is rejected
    for name in ("student", "teacher"):
        traffic = kernels.results[0].traffic[name]
        size = dtype.itemsize
        assert traffic.unique_bytes_loaded == student.nbytes
        assert traffic.bytes_loaded == student.nbytes + 3 * ranks * size
        assert traffic.widths == {16: student.nbytes // 16, size: 3 * ranks}
        assert traffic.bytes_stored == 0


def busy() -> Call:
    """Returns accepted, rejected and direct rows, a fault, an empty request and padding, over several rows per
    cluster."""
    student, teacher = ordinary(15, 1100, spread=1.5)
    call = ragged(student.bfloat16(), teacher.bfloat16(), [3, 4, 0, 3, 2], direct=0.0, padding=3,
                  epsilon=torch.tensor([0.3, 0.05, 0.1, INF, 0.01]), temperature=torch.tensor([1.0, 0.7, 1.0, 1.3, 0.5])
                  )  # fmt: skip
    refused, drafts = torch.tensor([1, 4, 9, 11]), call.draft_tokens.clone()
    drafts[refused] = (teacher - student)[refused].argmin(-1)  # which mu gives less probability than the student does
    drafts[6], drafts[8] = -1, -2
    accept = torch.zeros(15, dtype=torch.float64)
    accept[refused] = LARGEST
    return call.but(draft_tokens=drafts, accept_uniform=accept)


@both_ways
def test_schedules_and_grids_change_nothing(kernels: PtxOperators) -> None:
    call = busy()
    expected = call.by(kernels.verify)
    assert decisions(expected) == decisions(call.by(trbext.verify))
    for seed, clusters in ((0, 3), (1, 2)):
        shuffled = replace(kernels, results=[], seed=seed, clusters=clusters)
        assert same(call.by(shuffled.verify), expected), seed


@pytest.mark.parametrize(("kind", "dtype"), [(0, BFLOAT16), (1, FLOAT32), (2, FLOAT32)])
def test_layouts_and_indirection_do_not_change_a_bit(kind: int, dtype: torch.dtype) -> None:
    """Rows at odd addresses, which are shifted into place, are compared with rows that are read logit by logit."""
    vocab = 1103
    student, teacher = ordinary(6, vocab, spread=1.5)
    call = ragged(student, teacher.to(dtype), [4, 2], epsilon=0.1, temperature=torch.tensor([0.7, 1.3]), kind=kind)
    call = call.but(student_logits=call.student_logits.to(dtype))
    expected = call.by(CLUSTER.verify)
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    shuffled = torch.full((12, 2 * vocab + 1), NAN, dtype=dtype)
    shuffled[2 * order, 1::2] = call.student_logits
    every_other = torch.stack([2 * order, order], -1).reshape(-1)[::2]
    for variant in (
        call.but(student_logits=shuffled[:, 1::2], student_rows=every_other),
        call.but(teacher_logits=call.teacher_logits.t().contiguous().t(), teacher_rows=torch.arange(6).int()),
        call.but(draft_tokens=call.draft_tokens.int(), offsets=call.offsets.int(), epsilon=torch.tensor(0.1).expand(2)),
    ):
        assert same(variant.by(CLUSTER.verify), expected)
    assert_follows_the_law(call, expected)


def test_int32_tokens() -> None:
    call = three_requests()
    kernels = PtxOperators(90, ranks=2)
    options = {name: value for name, value in vars(call).items() if name not in ("epsilon", "offsets", "draft_tokens")}
    student, teacher = options.pop("student_logits"), options.pop("teacher_logits")
    got = kernels.verify(student, teacher, call.draft_tokens, call.offsets, call.epsilon, dtype=torch.int32, **options)
    assert got.tokens.dtype == torch.int32
    assert torch.equal(got.tokens.long(), call.by(kernels.verify).tokens)


# ---- planted bugs ----

PLANTED = (
    Planted(
        "one token too many is accepted",
        "operators/verify_requests.h",
        "      stopped = of_row.verdict != Verdict::kAccepted;",
        "      stopped = fault;",
    ),
    Planted(
        "no __syncwarp between the verdicts' copies and their use",
        "cuda/assemble_requests.cu",
        "  __syncwarp();\n",
        "",
    ),
    Planted(
        "the residual has the wrong sign",
        "cuda/kernel/sweep/sweep_terms.cuh",
        "return v > 0.0f && has_weight(a, b, frame) ? gain : 0.0f;",
        "return v < 0.0f && has_weight(a, b, frame) ? -gain : 0.0f;",
    ),
    Planted(
        "the request after the right one",
        "cuda/kernel/row_task.cuh",
        "return first + __ffs(holding) - 1;",
        "return min(first + __ffs(holding), verify.requests - 1);",
    ),
    Planted(
        "a request's end is its own row",
        "cuda/kernel/row_task.cuh",
        "row < rows.begin + rows.count",
        "row <= rows.begin + rows.count",
    ),
    Planted(
        "no barrier between the search for a row's request and its use",
        "cuda/kernel/solve_rows.cuh",
        "state, lane);\n      __syncthreads();\n      task = state.task;",
        "state, lane);\n      task = state.task;",
    ),
    Planted(
        "no wait for the peers' residuals before they are read",
        "cuda/kernel/solve_rows.cuh",
        "cluster.wait(&state.arrived[2], parity);",
        "__syncwarp();",
    ),
)


@pytest.mark.parametrize("planted", [pytest.param(bug, id=bug.name, marks=pytest.mark.nightly) for bug in PLANTED])
def test_a_bug_planted_in_the_kernels_is_found(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if planted.file.endswith(("verify_requests.h", ".cu")):
        assembly = planted.assembly_kernel(tmp_path)
        monkeypatch.setattr(ptx_rows, "assembly_kernel", lambda _: assembly)
    else:
        resident = planted.resident_kernel(tmp_path)
        monkeypatch.setattr(ptx_rows, "row_kernel", lambda *_: resident)
    call, expected = busy(), busy().by(trbext.verify)

    def on_four_schedules() -> None:
        for seed in (None, 0, 1, 2):
            got = call.by(PtxOperators(90, ranks=2, seed=seed, clusters=2).verify)
            assert decisions(got) == decisions(expected), "tokens of a request"

    race = planted.name.startswith("no ")
    with pytest.raises(AssertionError, match="Finding" if race else "tokens of a request"):
        on_four_schedules()
