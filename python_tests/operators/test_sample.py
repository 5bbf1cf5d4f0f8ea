"""The law of `trbext.sample` is mu exactly: it inverts the CDF at a 53-bit uniform, and the tests inject the
uniforms."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

import trbext
from python_tests.operators.devices import Operators
from python_tests.operators.row_families import families
from trbext import reference


def counts_of(trb: Operators, student: Tensor, teacher: Tensor, epsilon: float, uniforms: Tensor) -> Tensor:
    """Counts how often each token is drawn over the uniforms [M], in chunks that share one expanded row."""
    vocab = student.shape[-1]
    counts = torch.zeros(vocab, dtype=torch.int64)
    for chunk in uniforms.split(4096):
        rows = student.expand(len(chunk), -1), teacher.expand(len(chunk), -1)
        counts += torch.bincount(trb.sample(*rows, epsilon, uniform=chunk).token, minlength=vocab)
    return counts


@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.1, float("inf")])
@pytest.mark.parametrize("vocab", [2, 17, 300, 2500])
def test_a_grid_of_uniforms_reproduces_mu_to_two_counts(trb: Operators, vocab: int, epsilon: float) -> None:
    grid = 4096 if vocab > 300 else 20000
    uniforms = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    names = ["language model, close", "peaked, disagreeing", "flat"]
    if vocab > 2:
        names += ["both masked", "teacher's top tokens only", "student's top tokens only"]
    for name in names:
        student, teacher = families(vocab)[name]
        drawn = counts_of(trb, student, teacher, epsilon, uniforms)
        beta = trb.solve(student, teacher, epsilon).beta
        mu = reference.behavior_log_probs(student, teacher, beta).exp()
        assert ((drawn - grid * mu).abs() <= 2 + 1e-6 * grid).all(), name
        assert (drawn[mu == 0] == 0).all(), name


def test_chi_square_with_a_generator(trb: Operators) -> None:
    draws = 100_000
    p_values = []
    for name in ("language model, close", "zipf, close", "teacher's top tokens only"):
        for epsilon in (0.0, 0.05, float("inf")):
            student, teacher = families(60)[name]
            generator = torch.Generator().manual_seed(1)
            uniforms = torch.rand(draws, dtype=torch.float64, generator=generator)
            observed = counts_of(trb, student, teacher, epsilon, uniforms)
            beta = trb.solve(student, teacher, epsilon).beta
            expected = draws * reference.behavior_log_probs(student, teacher, beta).exp()
            rare = expected < 10
            observed = torch.cat([observed[~rare], observed[rare].sum()[None]]).double()
            expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
            keep = expected > 0
            p_values.append(stats.chisquare(observed[keep], expected[keep]).pvalue)
    # Holm at 1e-4 over the family of nine.
    assert min(p_values) * len(p_values) > 1e-4, p_values
    # Power: the same counts against a temperature 5 % off.
    wrong = draws * reference.behavior_log_probs(*families(60)["zipf, close"], torch.zeros(()), 1.05).exp()
    observed = counts_of(
        trb, *families(60)["zipf, close"], 0.0, torch.rand(draws, dtype=torch.float64, generator=generator)
    )
    assert stats.chisquare(observed.double(), wrong * draws / wrong.sum()).pvalue < 1e-9


@pytest.mark.parametrize("vocab", [1, 2, 17, 1024, 1025, 5000, 151936])
@pytest.mark.parametrize("epsilon", [0.0, 0.02, float("inf")])
def test_the_ends_of_the_uniform_stay_inside_the_support(trb: Operators, vocab: int, epsilon: float) -> None:
    generator = torch.Generator().manual_seed(vocab)
    student, teacher = (torch.randn(40, vocab, generator=generator) * s for s in (3.0, 1.0))
    if vocab > 2:  # masked first and last tokens, and a masked first and last block
        student[:, :1], student[:, -1:] = -torch.inf, -torch.inf
    if vocab > 3000:
        teacher[:, :1500], teacher[:, -1500:] = -torch.inf, -torch.inf
    for u in (0.0, 2.0**-54, 0.5, 1 - 2.0**-53):
        uniform = torch.full((40,), u, dtype=torch.float64)
        drawn = trb.sample(student, teacher, epsilon, uniform=uniform)
        log_mu = trb.blend(student, teacher, epsilon).log_probs
        assert ((drawn.token >= 0) & (drawn.token < vocab)).all()
        assert (log_mu.gather(1, drawn.token[:, None]) > -torch.inf).all()
        if u == 0.0:  # the first token of the support
            assert torch.equal(drawn.token, (log_mu > -torch.inf).int().argmax(-1))


def test_a_uniform_on_the_boundary_takes_the_token_above_it(trb: Operators) -> None:
    """Cells are half open: token k is drawn for CDF(k-1) <= u < CDF(k)."""
    logits = torch.zeros(4)
    for quarter in range(4):
        for offset, expected in ((0.0, quarter), (0.25 - 2.0**-50, quarter)):
            u = torch.tensor(quarter / 4 + offset, dtype=torch.float64)
            assert trb.sample(logits, logits, 0.0, uniform=u).token == expected


def test_log_probs_are_those_of_the_drawn_token(trb: Operators) -> None:
    for name, (student, teacher) in families(1000).items():
        for epsilon in (0.0, 1e-3, 0.1, float("inf")):
            for temperature in (0.7, 1.0):
                u = torch.tensor(0.61, dtype=torch.float64)
                drawn = trb.sample(student, teacher, epsilon, uniform=u, temperature=temperature)
                log_mu = reference.behavior_log_probs(student, teacher, drawn.beta, temperature)
                for got, expected in (
                    (drawn.log_prob, log_mu),
                    (drawn.student_log_prob, (student.double() / temperature).log_softmax(-1)),
                    (drawn.teacher_log_prob, (teacher.double() / temperature).log_softmax(-1)),
                ):
                    assert torch.allclose(got.double(), expected[drawn.token], atol=1e-5, rtol=1e-6), name
                if drawn.beta == 0:
                    assert drawn.log_prob == drawn.student_log_prob


def test_a_generator_makes_draws_reproducible_and_excludes_uniform() -> None:
    student, teacher = torch.randn(64, 100), torch.randn(64, 100)
    one, same, other = (
        trbext.sample(student, teacher, 0.1, generator=torch.Generator().manual_seed(seed)).token for seed in (3, 3, 4)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="uniform or generator, not both"):
        trbext.sample(student, teacher, 0.1, uniform=torch.zeros(64, dtype=torch.float64), generator=torch.Generator())
