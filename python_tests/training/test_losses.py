"""Compares the losses with a dense float64 reference, and at -inf, which could give NaN gradients."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.training.loss_cases import ROWS, VOCABULARY, dense_reverse_kl, gradient, logits
from trbext.training.losses import cross_entropy, entropy, reverse_kl, sampled_reverse_kl, veto_target


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_reverse_kl_and_its_gradient_equal_the_textbook_formula(temperature: float) -> None:
    student, teacher = logits()
    expected = dense_reverse_kl(student, teacher, temperature)
    found = reverse_kl(student, teacher, temperature=temperature)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(found, student), gradient(expected, student), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("temperature", [-1.0, 0.0, float("nan"), 1e-30])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be between 1e-6 and 1e6, got {temperature}"):
        reverse_kl(*logits(), temperature=temperature)


@pytest.mark.parametrize("top_k", [None, 1, 5])
@pytest.mark.parametrize("excluded", ["nothing", "by teacher", "by student", "by both"])
def test_gradcheck(top_k: int | None, excluded: str) -> None:
    student, teacher = logits(1)
    masks = {"nothing": ([], []), "by teacher": ([], [2, 9]), "by student": ([2, 9], []), "by both": ([2, 9], [9, 11])}
    of_student, of_teacher = masks[excluded]
    column = torch.arange(VOCABULARY)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        a = a.masked_fill(torch.isin(column, torch.tensor(of_student)), -torch.inf)
        b = b.masked_fill(torch.isin(column, torch.tensor(of_teacher)), -torch.inf)
        return reverse_kl(a, b, top_k=top_k)

    assert torch.autograd.gradcheck(loss, (student, teacher.requires_grad_()))


def test_top_k_is_the_kl_of_the_k_tokens_and_the_rest_taken_as_one() -> None:
    student, teacher = logits(2)
    p, q = student.softmax(-1), teacher.softmax(-1)
    top = p.topk(5).indices
    p5, q5 = p.gather(-1, top), q.gather(-1, top)
    rest_p, rest_q = 1 - p5.sum(-1), 1 - q5.sum(-1)
    expected = (p5 * (p5 / q5).log()).sum(-1) + rest_p * (rest_p / rest_q).log()
    found = reverse_kl(student, teacher, top_k=5)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(found, student), gradient(expected, student), rtol=1e-8, atol=1e-10)


def test_top_k_is_a_lower_bound_that_grows_to_the_full_kl() -> None:
    student, teacher = logits(3)
    values = [reverse_kl(student, teacher, top_k=k) for k in range(1, VOCABULARY + 1)]
    full = reverse_kl(student, teacher)
    assert all((value >= 0).all() and (value <= full + 1e-12).all() for value in values)
    torch.testing.assert_close(values[-2], full, rtol=1e-12, atol=1e-12)  # V - 1 tokens and one other: nothing is lost
    assert torch.equal(values[-1], full)
    assert torch.equal(reverse_kl(student, teacher, top_k=10 * VOCABULARY), full)


@pytest.mark.parametrize("top_k", [None, 5])
def test_a_student_equal_to_its_teacher_has_zero_loss_and_zero_gradient(top_k: int | None) -> None:
    student, _ = logits(4)
    loss = reverse_kl(student, student.detach(), top_k=top_k)
    assert torch.equal(loss, torch.zeros(ROWS, dtype=torch.float64))
    assert gradient(loss, student).abs().max() < 1e-15
    # The partial sum over the k tokens, which is what we do not use, pushes mass out of them even here.
    p, log_p = student.softmax(-1), student.log_softmax(-1)
    top = p.topk(5).indices
    partial = (p * (log_p - log_p.detach())).gather(-1, top)
    assert gradient(partial, student).abs().max() > 1e-3


def test_tokens_the_teacher_excludes_cost_a_finite_amount_and_lose_mass() -> None:
    student, teacher = logits(5)
    excluded = torch.zeros(VOCABULARY, dtype=torch.bool)
    excluded[[0, 7]] = True
    loss = reverse_kl(student, teacher.masked_fill(excluded, -torch.inf))
    p = student.softmax(-1)
    kept = p[:, ~excluded].sum(-1, keepdim=True)
    inside = p[:, ~excluded] / kept
    expected = (inside * (inside / teacher[:, ~excluded].softmax(-1)).log()).sum(-1) - kept[:, 0].log()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    slope = gradient(loss, student)
    assert slope.isfinite().all()
    assert (slope[:, excluded] > 0).all()  # descent lowers these logits


def test_disjoint_supports_are_infinite_with_zero_gradient_and_do_not_change_other_rows() -> None:
    student, teacher = logits(6)
    even = torch.arange(VOCABULARY) % 2 == 0
    first = torch.arange(ROWS)[:, None] == 0
    a, b = student.masked_fill(first & even, -torch.inf), teacher.masked_fill(first & ~even, -torch.inf)
    loss = reverse_kl(a, b)
    assert loss[0] == torch.inf
    assert torch.equal(loss[1:], reverse_kl(student, teacher)[1:])
    slope = gradient(loss, student)
    assert torch.equal(slope[0], torch.zeros(VOCABULARY, dtype=torch.float64))
    assert slope[1:].isfinite().all()
    assert slope[1:].abs().max() > 0


def test_top_k_beyond_the_support_leaves_nothing_to_the_rest() -> None:
    student, teacher = logits(9)
    few = torch.arange(VOCABULARY) >= 3  # three tokens are possible, so the rest of a top 3 has no mass at all
    a, b = student.masked_fill(few, -torch.inf), teacher.masked_fill(few, -torch.inf)
    loss = reverse_kl(a, b, top_k=3)
    torch.testing.assert_close(loss, reverse_kl(student[:, :3], teacher[:, :3]), rtol=1e-12, atol=1e-12)
    expected = gradient(reverse_kl(student[:, :3], teacher[:, :3]), student)
    torch.testing.assert_close(gradient(loss, student), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("top_k", [None, 1, 2, 3])
@pytest.mark.parametrize(
    "case", ["teacher's rest", "student's rest", "both rests", "disjoint", "no student", "no teacher"]
)
def test_a_row_of_which_something_is_empty_has_a_gradient(case: str, top_k: int | None) -> None:
    student, teacher = logits(12)
    teacher.requires_grad_()
    order = student.argsort(-1, descending=True).argsort(-1)  # the rank of each token for the student
    none = torch.zeros_like(order, dtype=torch.bool)
    # Which tokens the models exclude in the first row: with top_k = 2 or 3, the rest is empty.
    of_student, of_teacher = {
        "teacher's rest": (none, order >= 2),
        "student's rest": (order >= 2, none),
        "both rests": (order >= 2, order >= 2),
        "disjoint": (order >= 2, order < 2),
        "no student": (~none, none),
        "no teacher": (none, ~none),
    }[case]
    first = torch.arange(ROWS)[:, None] == 0
    # Added, as models mask tokens: masked_fill would also stop the gradient.
    a, b = (
        x + torch.where(first & mask, -torch.inf, 0.0) for x, mask in ((student, of_student), (teacher, of_teacher))
    )
    loss = reverse_kl(a, b, top_k=top_k)
    slopes = torch.autograd.grad(loss.sum(), (student, teacher))
    expected = torch.autograd.grad(reverse_kl(student, teacher, top_k=top_k)[1:].sum(), (student, teacher))
    assert loss[1:].isfinite().all()
    for slope, other in zip(slopes, expected, strict=True):
        assert slope.isfinite().all()
        torch.testing.assert_close(slope[1:], other[1:], rtol=1e-10, atol=1e-12)
        if case.startswith("no ") or (case == "disjoint" and top_k != 1):
            assert loss[0] == torch.inf
            assert (slope[0] == 0).all()


@pytest.mark.parametrize("excluded_by", ["student", "teacher", "both"])
@pytest.mark.parametrize("log_ratio_cap", [None, 1.0])
def test_a_row_without_tokens_is_infinite_from_one_token_too_and_has_gradient_zero(
    excluded_by: str, log_ratio_cap: float | None
) -> None:
    student, teacher = logits(13)
    mask = torch.zeros_like(student).index_fill_(0, torch.tensor([0]), -torch.inf)
    a = student + mask if excluded_by != "teacher" else student
    b = teacher + mask if excluded_by != "student" else teacher
    tokens, weights = torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.float64)
    loss = sampled_reverse_kl(a, b, tokens, weights, log_ratio_cap=log_ratio_cap)
    assert loss[0] == torch.inf
    ordinary = sampled_reverse_kl(student, teacher, tokens, weights, log_ratio_cap=log_ratio_cap)
    assert torch.equal(loss[1:], ordinary[1:])
    slope = gradient(loss, student)
    assert torch.equal(slope[0], torch.zeros(VOCABULARY, dtype=torch.float64))
    assert torch.equal(slope[1:], gradient(ordinary[1:], student)[1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = logits(7, dtype=dtype)
    found = reverse_kl(student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), dense_reverse_kl(student, teacher), rtol=1e-5, atol=1e-6)
    assert gradient(found, student).dtype == dtype


def test_entropy_of_a_row_with_excluded_tokens() -> None:
    row = torch.tensor([[0.0, 0.0, -torch.inf, 0.0, 0.0]])
    torch.testing.assert_close(entropy(row), torch.tensor([4.0]).log())
    assert entropy(torch.tensor([[5.0, -torch.inf]])) == 0


# ---- Estimates from the sampled token ----


def every_token(student: Tensor, teacher: Tensor, mu: Tensor, **kwargs: float) -> Tensor:
    """Returns [ROWS, V]: the estimate for each token that mu could have drawn."""
    log_weight = (student.detach() / kwargs.get("temperature", 1.0)).log_softmax(-1) - mu.log()
    rows = [
        sampled_reverse_kl(student, teacher, torch.full((ROWS,), token), log_weight[:, token], **kwargs)
        for token in range(VOCABULARY)
    ]
    return torch.stack(rows, -1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("behavior", ["student", "teacher", "blend"])
def test_the_expectation_over_tokens_of_the_sampled_estimate_is_the_reverse_kl_and_its_gradient(
    behavior: str, excluded: bool, temperature: float
) -> None:
    student, teacher = logits(8)
    if excluded:  # a token the teacher excludes has a finite stand-in
        teacher = teacher.masked_fill(torch.arange(VOCABULARY) == 3, -torch.inf)
    p, q = (student.detach() / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    mu = {"student": p, "teacher": 0.999 * q + 0.001 * p, "blend": (p + q) / 2}[behavior]
    expected = reverse_kl(student, teacher, temperature=temperature)
    found = (mu * every_token(student, teacher, mu, temperature=temperature)).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(found, student), gradient(expected, student), rtol=1e-9, atol=1e-12)


def test_without_its_weight_the_sampled_estimate_is_biased() -> None:
    student, teacher = logits(8)
    mu = teacher.softmax(-1)
    unweighted = torch.stack(
        [
            sampled_reverse_kl(student, teacher, torch.full((ROWS,), token), torch.zeros(ROWS))
            for token in range(VOCABULARY)
        ],
        -1,
    )
    assert ((mu * unweighted).sum(-1) < 0).all()  # it estimates -KL(pi_T || pi_S)
    full, wrong = gradient(reverse_kl(student, teacher), student), gradient((mu * unweighted).sum(-1), student)
    assert (full - wrong).abs().max() > 0.1


def test_the_gradient_has_no_noise_if_the_student_equals_the_teacher() -> None:
    student, _ = logits(4)
    found = sampled_reverse_kl(student, student.detach(), torch.arange(ROWS), torch.ones(ROWS))
    assert gradient(found, student).abs().max() < 1e-15


def test_a_cap_cuts_the_weight_and_nothing_else() -> None:
    student, teacher = logits(9)
    token, log_weight = torch.arange(ROWS), torch.linspace(-2, 2, ROWS, dtype=torch.float64)
    free = sampled_reverse_kl(student, teacher, token, log_weight)
    capped = sampled_reverse_kl(student, teacher, token, log_weight, weight_cap=1.5)
    expected = torch.where(log_weight.exp() > 1.5, free * 1.5 / log_weight.exp(), free)
    torch.testing.assert_close(capped, expected)
    assert (capped != free).sum() == 3


# ---- Veto and supervision ----


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("top_k", [None, 5])
def test_vetos_target_is_the_teacher_times_a_power_of_the_student_held_constant(
    temperature: float, top_k: int | None
) -> None:
    student, teacher = logits(10)
    p, q = ((x.detach() / temperature).softmax(-1) for x in (student, teacher))
    target = (q * p**0.4) / (q * p**0.4).sum(-1, keepdim=True)
    found = reverse_kl(student, veto_target(student, teacher, 0.4), top_k=top_k, temperature=temperature)
    expected = reverse_kl(student, target.log() * temperature, top_k=top_k, temperature=temperature)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(found, student), gradient(expected, student), rtol=1e-9, atol=1e-12)
    if top_k is None:  # sum grad pi_S ((1 - b) log pi_S - log pi_T)
        live = (student / temperature).softmax(-1)
        formula = (live * (0.6 * p.log() - q.log())).sum(-1)
        again = reverse_kl(student, veto_target(student, teacher, 0.4), temperature=temperature)
        torch.testing.assert_close(gradient(again, student), gradient(formula, student), rtol=1e-9, atol=1e-12)


def test_veto_keeps_excluded_tokens_excluded_and_without_an_exponent_is_the_teacher() -> None:
    student, teacher = logits(11)
    assert veto_target(student, teacher, 0.0) is teacher
    with torch.no_grad():
        student[:, 2], teacher[:, 5] = -torch.inf, -torch.inf
    target = veto_target(student, teacher, 0.5)
    assert (target[:, [2, 5]] == -torch.inf).all()
    assert reverse_kl(student, target).isfinite().all()


def test_cross_entropy_is_the_surprise_of_the_token_at_the_temperature() -> None:
    student, _ = logits(12)
    token = torch.arange(ROWS)
    expected = -(student / 0.7).softmax(-1)[token, token].log()
    torch.testing.assert_close(cross_entropy(student, token, temperature=0.7), expected, rtol=1e-12, atol=1e-12)


def test_the_arguments_of_reverse_kl_are_checked() -> None:
    logits = torch.zeros(2, 5)
    for top_k, message in (
        (0, "at least 1, got 0"),
        (2.5, "a whole number, got 2.5"),
        (True, "a whole number, got True"),
        ("3", "a whole number, got '3'"),
    ):
        with pytest.raises(ValueError, match=f"top_k must be {message}"):
            reverse_kl(logits, logits, top_k=top_k)  # type: ignore[arg-type]


def of_one_token(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return sampled_reverse_kl(student, teacher, torch.zeros(2, dtype=torch.int64), torch.zeros(2), **options)


@pytest.mark.parametrize("kl", [reverse_kl, of_one_token])
def test_both_estimates_check_their_logits_and_their_temperature(kl: Any) -> None:
    logits = torch.zeros(2, 5)
    with pytest.raises(ValueError, match=r"must have one shape \[..., V\], got \[2, 5\] and \[2, 4\]"):
        kl(logits, logits[:, :4])
    with pytest.raises(ValueError, match=r"teacher_logits must be floating-point, got torch\.int64"):
        kl(logits, logits.long())
    with pytest.raises(TypeError, match="student_logits must be a tensor, got list"):
        kl(logits.tolist(), logits)
    with pytest.raises(ValueError, match="temperature must be between 1e-6 and 1e6, got 0"):
        kl(logits, logits, temperature=0.0)


@pytest.mark.parametrize(("name", "place"), [("token", 0), ("log_weight", 1)])
def test_an_estimate_from_one_token_needs_one_of_each_prefix(name: str, place: int) -> None:
    logits, of_prefixes = torch.zeros(2, 5), [torch.zeros(2, dtype=torch.int64), torch.zeros(2)]
    of_prefixes[place] = of_prefixes[place][:, None]
    with pytest.raises(ValueError, match=rf"{name} must have shape \[2\], got \[2, 1\]"):
        sampled_reverse_kl(logits, logits, *of_prefixes)


def test_cross_entropy_needs_one_token_of_each_prefix() -> None:
    logits, token = torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)
    for wrong in (token[:2], token[:, None], token[0]):
        with pytest.raises(ValueError, match=re.escape(f"token must have shape [4], got {list(wrong.shape)}")):
            cross_entropy(logits, wrong)
    with pytest.raises(ValueError, match=r"student_logits must be floating-point, got torch\.int64"):
        cross_entropy(logits.long(), token)
    with pytest.raises(TypeError, match="token must be a tensor, got list"):
        cross_entropy(logits, token.tolist())


def test_the_temperature_of_cross_entropy_is_checked() -> None:
    with pytest.raises(ValueError, match="temperature must be between 1e-6 and 1e6, got 0"):
        cross_entropy(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64), temperature=0.0)
