"""trbext.verify decides as the mathematics does: per row, and over blocks of drafts the law is mu exactly."""

from __future__ import annotations

import inspect

import pytest
import torch
from scipy import stats
from torch import Tensor

import trbext
from python_tests.operators.devices import Operators
from python_tests.operators.row_families import families
from python_tests.operators.verify_calls import Call, Verify, assert_follows_the_law, of_kind, ordinary, ragged, same
from trbext import reference

INF = float("inf")
BUDGETS = (0.0, 1e-4, 0.01, 0.3, INF)


def family_call(vocab: int, kind: int, temperature: Tensor, epsilon: Tensor, dtype: torch.dtype, seed: int) -> Call:
    """Returns one request for each family: two drafts and a direct row, all over the same pair of rows."""
    pairs = [pair for name, pair in families(vocab).items() if "bfloat16" not in name]
    student, teacher = (torch.stack([pair[i] for pair in pairs]).repeat_interleave(3, 0).to(dtype) for i in (0, 1))
    count = len(pairs)
    call = ragged(
        student,
        teacher,
        [3] * count,
        seed=seed,
        epsilon=epsilon.repeat(count)[:count],
        temperature=temperature.repeat(count)[:count],
        kind=kind,
        direct=0.0,
    )
    drafts = call.draft_tokens.clone()
    drafts[2::3] = -1
    return call.but(draft_tokens=drafts)


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("vocab", [17, 2500])
def test_every_decision_follows_the_law_over_row_families(trb: Operators, vocab: int, kind: int) -> None:
    for seed in range(len(BUDGETS)):  # each family meets each budget, at one of three temperatures
        epsilon = torch.tensor(BUDGETS).roll(seed)
        temperature = torch.tensor([1.0, 0.6, 1.7]).roll(seed)
        call = family_call(vocab, kind, temperature, epsilon, torch.float32, seed)
        got = call.by(trb.verify)
        assert (got.emitted >= 0).all()
        assert_follows_the_law(call, got)


@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float16", "float16"), ("float32", "bfloat16")])
def test_every_decision_follows_the_law_in_every_dtype(trb: Operators, dtypes: tuple[str, str]) -> None:
    student, teacher = (torch.randn(24, 2100, generator=torch.Generator().manual_seed(i)) * 2 for i in (0, 1))
    pair = (
        logits.to(getattr(torch, dtype)) for logits, dtype in zip((student, student + teacher), dtypes, strict=True)
    )
    call = ragged(*pair, [4] * 6, epsilon=torch.tensor([0.0, 1e-3, 0.05, 0.5, 2.0, INF]), temperature=0.8)
    assert_follows_the_law(call, call.by(trb.verify))
    probabilities = call.but(student_logits=of_kind(call.student_logits, torch.full((24,), 0.8), 1), student_kind=1)
    for kind in ("float32", "bfloat16"):
        rounded = probabilities.but(student_logits=probabilities.student_logits.to(getattr(torch, kind)))
        assert_follows_the_law(rounded, rounded.by(trb.verify))


@pytest.mark.parametrize("kind", [0, 2])
def test_rows_too_wide_for_float32_follow_the_law_as_well(trb: Operators, kind: int) -> None:
    """The rows are masked by -1e4 or by the lowest finite number in one model only."""
    student, teacher = ordinary(20, 2100, spread=1.5)
    masked = torch.rand(20, 2100, generator=torch.Generator().manual_seed(0)) < 0.3
    student[:8] = student[:8].masked_fill(masked[:8], -1e4)
    teacher[4:12] = teacher[4:12].masked_fill(masked[4:12], -1e4)
    teacher[12:] = teacher[12:].masked_fill(masked[12:], torch.finfo(torch.float32).min)
    call = ragged(
        student, teacher, [4] * 5, epsilon=torch.tensor([0.1, INF, 0.5, 0.5, INF]), temperature=1.25, kind=kind
    )
    for seed in range(4):
        uniforms = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        call = call.but(accept_uniform=uniforms**0.25, draw_uniform=uniforms.flip(0))  # most are rejected
        assert_follows_the_law(call, call.by(trb.verify))


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("counts", [[3, 0, 1, 4, 2], [1], [0, 0], [5, 5, 5]])
def test_agrees_with_the_float64_reference(trb: Operators, counts: list[int], kind: int) -> None:
    """Tokens and counts agree exactly: no uniform of these seeds falls between the two betas (2e-4 of the budget
    apart)."""
    for vocab in (3, 60, 1500):
        student, teacher = ordinary(sum(counts) + 2, vocab, seed=vocab)
        budgets, heats = torch.tensor(BUDGETS), torch.tensor([1.0, 0.5, 1.3])
        for seed in range(4 if vocab < 1000 else 1):
            epsilon = budgets.roll(seed + vocab).repeat(2)[: len(counts)]
            temperature = heats.roll(seed + vocab).repeat(2)[: len(counts)]
            call = ragged(
                student, teacher, counts, seed=seed, epsilon=epsilon, temperature=temperature, kind=kind, padding=2
            )
            got, expected = call.by(trb.verify), call.by(reference.verify)
            for exact in ("tokens", "emitted", "accepted"):
                assert torch.equal(getattr(got, exact), getattr(expected, exact)), (vocab, seed, exact)
            assert torch.allclose(got.kl.double(), expected.kl, rtol=3e-4, atol=2e-6, equal_nan=True)
            assert torch.allclose(got.log_probs.double(), expected.log_probs, atol=3e-3, equal_nan=True)
            assert_follows_the_law(call, got)


def test_beta_and_kl_are_those_of_solve_to_the_bit(trb: Operators) -> None:
    for temperature in (1.0, 0.7):
        student, teacher = ordinary(40, 3000, spread=1.5)
        epsilon = torch.rand(40, generator=torch.Generator().manual_seed(0)) * 0.3
        call = ragged(student, teacher, [1] * 40, epsilon=epsilon, temperature=temperature)
        got = call.by(trb.verify)
        float32 = float(torch.tensor(temperature))
        beta, kl, _ = trb.solve(student, teacher, epsilon, temperature=float32)
        assert torch.equal(got.beta, beta)
        assert torch.equal(got.kl, kl)


def test_scaled_logits_at_temperature_1_are_logits(trb: Operators) -> None:
    call = ragged(*ordinary(12, 1500), [3] * 4)
    assert same(call.but(student_kind="scaled_logits").by(trb.verify), call.by(trb.verify))


def test_probabilities_of_any_size_keep_their_logarithm(trb: Operators) -> None:
    """Log-probabilities of 1 down to subnormal numbers, against float64: with epsilon 0 every draft is accepted, and
    the outputs report log p."""
    exponents = torch.linspace(0, -148, 600, dtype=torch.float64)
    p = torch.stack([torch.exp2(exponents).float(), torch.ones(600)], 1)
    call = Call(
        p, torch.zeros(600, 2), torch.zeros(600, dtype=torch.int64), torch.arange(601), 0.0,
        torch.rand(600, dtype=torch.float64), torch.zeros(600, dtype=torch.float64), width=1, student_kind=1,
    )  # fmt: skip
    got = call.by(trb.verify)
    assert (got.accepted == 1).all()
    expected = p.double()[:, 0].log() - p.double().sum(1).log()
    assert torch.allclose(got.log_probs[:, 0, 0].double(), expected, rtol=2e-7, atol=2e-7)


# ---- the law, over all uniforms ----


def law(verify: Verify, call: Call, grid: int) -> Tensor:
    """Returns P(out = token) of the one row of `call` over drafts from pi_S and both uniforms, [V] float64.

    The uniforms are integrated: a draft is accepted for an interval of uniforms from 0, and the replacement is constant
    on intervals, so that a grid of midpoints is correct to one step for each.
    """
    x, _ = call.log_student_and_teacher(0, 0)
    vocab = len(x)
    uniforms = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    rows = vocab * grid
    many = call.but(
        draft_tokens=torch.arange(vocab).repeat_interleave(grid),
        offsets=torch.arange(rows + 1),
        student_rows=torch.zeros(rows, dtype=torch.int32),
        teacher_rows=torch.zeros(rows, dtype=torch.int64),
        log_probs=False,
    )
    half, one = (torch.full((rows,), u, dtype=torch.float64) for u in (0.5, 1 - 2.0**-53))
    accepted = many.but(accept_uniform=uniforms.repeat(vocab), draw_uniform=half).by(verify).accepted
    kept = accepted.view(vocab, grid).double().mean(1)
    drawn = many.but(accept_uniform=one, draw_uniform=uniforms.repeat(vocab)).by(verify)
    replaced = torch.stack([torch.bincount(row, minlength=vocab) for row in drawn.tokens.view(vocab, grid)]) / grid
    pi = x.softmax(-1)
    return pi * kept + (pi * (1 - kept)) @ replaced.double()


LAWS = [(epsilon, kind) for epsilon in (0.0, 0.01, 0.3, INF) for kind in (0, 1, 2)]


def one_row(epsilon: float, kind: int, vocab: int = 5) -> Call:
    student, teacher = ordinary(1, vocab, seed=3, spread=2.0)
    teacher[0, 1] = -INF if epsilon == INF else teacher[0, 1]
    return ragged(student, teacher, [1], epsilon=epsilon, temperature=0.8, kind=kind, direct=0.0)


def distance_from_mu(verify: Verify, call: Call, grid: int) -> float:
    epsilon, temperature = float(call.epsilon), float(call.temperature)  # type: ignore[arg-type]
    x, y = call.log_student_and_teacher(0, 0)
    mu = reference.blend(x, y, epsilon).log_probs.exp()
    assert temperature == 0.8
    return float((law(verify, call, grid) - mu).abs().max())


@pytest.mark.parametrize(("epsilon", "kind"), LAWS)
def test_a_draft_kept_or_replaced_follows_mu_over_all_uniforms(trb: Operators, epsilon: float, kind: int) -> None:
    grid = 4000
    # Half a step for where each interval ends, and 1e-4 of the budget for beta.
    assert distance_from_mu(trb.verify, one_row(epsilon, kind), grid) < 2.0 / grid


def test_the_reference_follows_mu_over_all_uniforms() -> None:
    for epsilon, kind in ((0.01, 0), (0.3, 1), (0.3, 2), (INF, 0)):
        assert distance_from_mu(reference.verify, one_row(epsilon, kind), 250) < 2.0 / 250, (epsilon, kind)


@pytest.mark.parametrize(
    ("text", "planted"),
    [
        ("(policy.log_probs[row, draft] - log_student", "(log_teacher[row, draft] - log_student"),
        ("(mu - log_student[row].exp()).clamp(min=0)", "mu"),
        ("(mu - log_student[row].exp()).clamp(min=0)", "(mu - log_student[row].exp()).abs()"),
        ("accept_uniform[row] < ratio", "accept_uniform[row] < ratio.sqrt()"),
    ],
)
def test_planted_bugs_break_the_law(text: str, planted: str) -> None:
    source = inspect.getsource(reference.verify)
    assert source.count(text) == 1
    namespace = dict(vars(reference))
    exec(source.replace(text, planted), namespace)
    assert distance_from_mu(namespace["verify"], one_row(0.3, 0), 250) > 0.02


def chain_tables() -> tuple[Tensor, Tensor]:
    student, teacher = ordinary(4, 4, seed=11, spread=1.5)
    return student / 2, teacher / 2


def blocks_of_a_chain(verify: Verify, draft_length: int, direct: bool, count: int, seed: int) -> Tensor:
    """Returns [count, 3] tokens of a Markov model of 4 tokens, whose logits are a table by the token before.

    The student drafts them, and they are verified in ragged batches until each sequence has three.
    """
    student, teacher = chain_tables()
    generator = torch.Generator().manual_seed(seed)
    pi = (student.double() / 0.9).softmax(-1)
    tokens = torch.zeros(count, 4, dtype=torch.int64)  # the first is the prompt
    length = torch.ones(count, dtype=torch.int64)
    while (open_ := (length < 4).nonzero()[:, 0]).numel():
        before, drafts = [tokens[open_, length[open_] - 1]], []
        for _ in range(draft_length):
            drafts.append(torch.multinomial(pi[before[-1]], 1, generator=generator)[:, 0])
            before.append(drafts[-1])
        if direct:
            drafts.append(torch.full_like(drafts[0], -1))
        else:
            before.pop()
        width, rows = len(drafts), len(drafts) * len(open_)
        table_rows = torch.stack(before, 1).reshape(-1)
        got = Call(
            student, teacher, torch.stack(drafts, 1).reshape(-1), torch.arange(0, rows + 1, width), 0.1,
            torch.rand(rows, dtype=torch.float64, generator=generator),
            torch.rand(rows, dtype=torch.float64, generator=generator),
            width=width, temperature=0.9, student_rows=table_rows, teacher_rows=table_rows,
        ).by(verify)  # fmt: skip
        for place in range(width):
            here = (place < got.emitted) & (length[open_] + place < 4)
            tokens[open_[here], length[open_[here]] + place] = got.tokens[here, place]
        length[open_] += got.emitted
    return tokens[:, 1:]


def chain_p_value(sequences: Tensor) -> float:
    student, teacher = chain_tables()
    mu = reference.blend(student / 0.9, teacher / 0.9, 0.1).log_probs.exp()
    law = (mu[0][:, None, None] * mu[:, :, None] * mu[None, :, :]).reshape(-1)
    observed = torch.bincount(sequences @ torch.tensor([16, 4, 1]), minlength=64).double()
    expected = law * len(sequences)
    rare = expected < 10
    observed, expected = (torch.cat([n[~rare], n[rare].sum()[None]]) for n in (observed, expected))
    return float(stats.chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("draft_length", [1, 2, 4])
def test_blocks_of_drafts_follow_mu_over_sequences(trb: Operators, draft_length: int, direct: bool) -> None:
    sequences = blocks_of_a_chain(trb.verify, draft_length, direct, 40_000, seed=draft_length)
    assert chain_p_value(sequences) > 1e-3  # of six, with fixed seeds


def test_one_token_too_many_breaks_the_law_over_sequences() -> None:
    def generous(*arguments: Tensor, **options: Tensor) -> reference.Verification:
        """If a draft was replaced, also accepts the draft after it."""
        got = trbext.verify(*arguments, **options)
        drafts = arguments[2].view(len(got.tokens), -1)
        more = (got.emitted > got.accepted) & (got.emitted < drafts.shape[1])
        place = got.emitted.clamp(max=drafts.shape[1] - 1)[:, None].long()
        tokens = torch.where(more[:, None], got.tokens.scatter(1, place, drafts.gather(1, place)), got.tokens)
        return got._replace(tokens=tokens, emitted=got.emitted + more)

    assert chain_p_value(blocks_of_a_chain(generous, 4, False, 40_000, seed=4)) < 1e-9


# ---- the uniform's ends ----


@pytest.mark.parametrize("vocab", [1, 2, 17, 1025, 5000])
@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.5, INF])
def test_the_ends_of_the_uniforms_stay_inside_the_support(trb: Operators, vocab: int, epsilon: float) -> None:
    student, teacher = ordinary(40, vocab, seed=vocab, spread=2.0)
    if vocab > 2:
        student[:, :1], student[:, -1:] = -INF, -INF
    if vocab > 3000:
        teacher[:, :1500], teacher[:, -1500:] = -INF, -INF
    call = ragged(student, teacher, [1] * 40, epsilon=epsilon, direct=0.3)
    log_mu = trb.blend(student, teacher, torch.full((40,), epsilon)).log_probs
    for u in (0.0, 2.0**-54, 0.5, 1 - 2.0**-53):
        for v in (0.0, 2.0**-54, 1 - 2.0**-53):
            accept, draw = (torch.full((40,), end, dtype=torch.float64) for end in (u, v))
            got = call.but(accept_uniform=accept, draw_uniform=draw).by(trb.verify)
            assert (got.emitted == 1).all()
            assert (log_mu.gather(1, got.tokens) > -INF).all()
            if u == 0.0:  # every draft with mu > 0 is kept
                drafted = call.draft_tokens >= 0
                kept = log_mu.gather(1, call.draft_tokens.clamp(min=0)[:, None])[:, 0] > -INF
                assert torch.equal(got.accepted.bool(), drafted & kept)


def test_epsilon_zero_keeps_every_draft_whatever_the_uniform(trb: Operators) -> None:
    call = ragged(*ordinary(30, 300), [3] * 10, epsilon=0.0, direct=0.0)
    got = call.but(accept_uniform=torch.full((30,), 1 - 2.0**-53, dtype=torch.float64)).by(trb.verify)
    assert (got.accepted == 3).all()
    assert torch.equal(got.log_probs[..., 0], got.log_probs[..., 2])


@pytest.mark.parametrize("vocab", [2, 60, 1500])
def test_a_token_is_drawn_from_mu_if_rounding_leaves_a_rejected_draft_no_residual(trb: Operators, vocab: int) -> None:
    """The models agree up to rounding: mu / pi_S may come out as 1 - 1e-9 for every token, below the largest
    uniform."""
    student, _ = ordinary(200, vocab, seed=vocab)
    noise = torch.randn(200, 1, generator=torch.Generator().manual_seed(1))
    for teacher in (student, student + 64, student * (1 + 1e-7 * noise)):
        call = ragged(student, teacher, [1] * 200, epsilon=0.1, direct=0.0)
        got = call.but(accept_uniform=torch.full((200,), 1 - 2.0**-53, dtype=torch.float64)).by(trb.verify)
        assert (got.emitted == 1).all()
        if teacher is student:
            drawn = trb.sample(student, teacher, 0.1, uniform=call.draw_uniform).token
            assert torch.equal(got.tokens[:, 0], torch.where(got.accepted == 1, call.draft_tokens, drawn))
