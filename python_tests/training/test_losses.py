"""The losses against a dense float64 reference, against TRL's loss, and where -inf would give NaN gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)
from trl.trainer.distillation_trainer import _chunked_divergence_loss

from python_tests.models.tiny_models import tiny_llama
from trbext.models.lm_head import LMHead, lm_head
from trbext.training.losses import (
    PrefixTerms,
    chunked_reverse_kl,
    cross_entropy,
    entropy,
    reverse_kl,
    sampled_reverse_kl,
    teacher_terms,
    veto_target,
)
from trbext.vocab import Alignment

ROWS, VOCABULARY = 7, 23


def logits(seed: int = 0, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = 3 * torch.randn(2, ROWS, VOCABULARY, generator=generator, dtype=torch.float64)
    return pair[0].to(dtype).requires_grad_(), pair[1].to(dtype)


def dense_reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    p = (student.double() / temperature).softmax(-1)
    q = (teacher.double() / temperature).softmax(-1)
    return (p * (p / q).log()).sum(-1)


def gradient(loss: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), at)[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_reverse_kl_and_its_gradient_equal_the_textbook_formula(temperature: float) -> None:
    student, teacher = logits()
    expected = dense_reverse_kl(student, teacher, temperature)
    found = reverse_kl(student, teacher, temperature=temperature)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(found, student), gradient(expected, student), rtol=1e-10, atol=1e-12)


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


def test_disjoint_supports_are_infinite_with_zero_gradient_and_leave_other_rows_alone() -> None:
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


# ---- From hidden states ----


def heads(*, narrow: bool = False) -> tuple[Tensor, Tensor, LMHead, LMHead, Tensor]:
    generator = torch.Generator().manual_seed(8)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    student = LMHead(normal(VOCABULARY, 5).requires_grad_(), normal(VOCABULARY).requires_grad_(), 0.7, 4.0)
    teacher = LMHead(normal(VOCABULARY + 3 * narrow, 9), None, 1.3, None)
    tokens = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    return normal(ROWS, 5).requires_grad_(), normal(ROWS, 9), student, teacher, tokens


def flat(terms: PrefixTerms) -> list[Tensor]:
    return [terms.reverse_kl, terms.student_entropy, *terms.teacher]


@pytest.mark.parametrize("top_k", [None, 4])
def test_chunks_do_not_change_values_or_gradients(top_k: int | None) -> None:
    student_hidden, teacher_hidden, student, teacher, tokens = heads()
    alignment = Alignment(VOCABULARY, (1,), (1,))
    results = []
    for elements in (2 * VOCABULARY, 10**6):  # two rows per chunk, and all at once
        terms = chunked_reverse_kl(
            student_hidden, teacher_hidden, student, teacher, tokens, alignment, top_k=top_k, chunk_elements=elements
        )
        slopes = torch.autograd.grad(terms.reverse_kl.sum(), (student_hidden, student.weight, student.bias))
        results.append([*flat(terms), *slopes])
    for chunked, whole in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-13)


def test_no_logits_are_kept_for_the_backward_pass() -> None:
    student_hidden, teacher_hidden, student, teacher, tokens = heads()
    kept, alignment = [], Alignment(VOCABULARY, (1,), (1,))
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.shape) or saved, lambda saved: saved):
        chunked_reverse_kl(
            student_hidden, teacher_hidden, student, teacher, tokens, alignment, chunk_elements=2 * VOCABULARY
        )
    assert not [shape for shape in kept if VOCABULARY in shape]


def test_merged_eos_ids_are_one_outcome_for_the_loss() -> None:
    student_hidden, teacher_hidden, student, teacher, tokens = heads(narrow=True)
    alignment = Alignment(VOCABULARY, (1, 4), (6,))  # e* = 1; the student also stops with 4, the teacher with 6
    temperature = 0.6
    terms = chunked_reverse_kl(
        student_hidden, teacher_hidden, student, teacher, tokens, alignment, temperature=temperature
    )
    others = [v for v in range(VOCABULARY) if v not in (1, 4, 6)]

    def merged(logits: Tensor) -> Tensor:
        p = (logits[:, :VOCABULARY] / temperature).softmax(-1)
        return torch.cat([p[:, [1, 4, 6]].sum(-1, keepdim=True), p[:, others]], -1)

    p, q = merged(student(student_hidden)), merged(teacher(teacher_hidden))
    expected = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(terms.reverse_kl, expected, rtol=1e-10, atol=1e-12)
    other_eos = torch.full_like(tokens, 4)  # where another engine ended a rollout with it, it counts as e*
    stops = chunked_reverse_kl(
        student_hidden, teacher_hidden, student, teacher, other_eos, alignment, temperature=temperature
    )
    torch.testing.assert_close(stops.teacher.log_prob, q[:, 0].log(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("narrow", [False, True])
def test_equals_the_fused_loss_of_trl(narrow: bool) -> None:
    student_hidden, teacher_hidden, student, teacher, tokens = heads(narrow=narrow)
    student_hidden, teacher_hidden = student_hidden.detach().float().requires_grad_(), teacher_hidden.float()
    weight, bias = student.weight.detach().float().requires_grad_(), student.bias.detach().float().requires_grad_()
    student = LMHead(weight, bias, student.scale, student.softcap)
    teacher = LMHead(teacher.weight.float(), None, teacher.scale, None).narrowed(VOCABULARY)
    leaves = (student_hidden, weight, bias)
    terms = chunked_reverse_kl(
        student_hidden, teacher_hidden, student, teacher, tokens, Alignment(VOCABULARY, (1,), (1,)), temperature=1.7
    )
    loss, entropy_sum, count = _chunked_divergence_loss(
        student_hidden[None],
        teacher_hidden[None],
        student.weight,
        teacher.weight,
        torch.ones(1, ROWS),
        1.0,
        student_lm_head_bias=student.bias,
        student_logit_scale=student.scale,
        teacher_logit_scale=teacher.scale,
        student_final_logit_softcapping=student.softcap,
        temperature=1.7,
    )
    assert count == ROWS
    torch.testing.assert_close(terms.reverse_kl.mean(), loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms.student_entropy.sum(), entropy_sum, rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(terms.reverse_kl.mean(), leaves)
    for mine, theirs in zip(ours, torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


# ---- Estimates from the sampled token ----


def every_token(student: Tensor, teacher: Tensor, mu: Tensor, **kwargs: float) -> Tensor:
    """[ROWS, V]: the estimate for each token that mu could have drawn."""
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
    if excluded:  # a token the teacher rules out has a finite stand-in
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


def test_the_gradient_has_no_noise_where_the_student_equals_the_teacher() -> None:
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


def test_chunks_minimise_another_loss_and_report_the_reverse_kl_without_gradient() -> None:
    student_hidden, teacher_hidden, student, teacher, tokens = heads()
    alignment, weights = Alignment(VOCABULARY, (1,), (1,)), torch.linspace(-1, 1, ROWS, dtype=torch.float64)
    terms = chunked_reverse_kl(
        student_hidden,
        teacher_hidden,
        student,
        teacher,
        tokens,
        alignment,
        loss=sampled_reverse_kl,
        log_weight=weights,
        chunk_elements=2 * VOCABULARY,
    )
    plain = chunked_reverse_kl(student_hidden, teacher_hidden, student, teacher, tokens, alignment)
    assert torch.equal(plain.loss, plain.reverse_kl)
    torch.testing.assert_close(terms.reverse_kl, plain.reverse_kl, rtol=1e-12, atol=1e-13)
    assert not terms.reverse_kl.requires_grad
    whole = sampled_reverse_kl(student(student_hidden), teacher(teacher_hidden), tokens, weights)
    torch.testing.assert_close(terms.loss, whole, rtol=1e-12, atol=1e-13)
    slopes = [torch.autograd.grad(loss.sum(), student.weight)[0] for loss in (terms.loss, whole)]
    torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-13)


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


def test_teacher_terms_alone_equal_those_of_the_loss() -> None:
    student_hidden, teacher_hidden, student, teacher, tokens = heads()
    alignment = Alignment(VOCABULARY, (1,), (3,))
    together = chunked_reverse_kl(student_hidden, teacher_hidden, student, teacher, tokens, alignment).teacher
    alone = teacher_terms(teacher_hidden, teacher, tokens, alignment)
    assert torch.equal(alone.log_prob, together.log_prob)
    assert torch.equal(alone.entropy, together.entropy)


def test_a_process_without_tokens_keeps_its_graph() -> None:
    student_hidden, teacher_hidden, student, teacher, tokens = heads()
    terms = chunked_reverse_kl(
        student_hidden[:0], teacher_hidden[:0], student, teacher, tokens[:0], Alignment(VOCABULARY, (1,), (1,)), top_k=4
    )
    assert terms.reverse_kl.shape == (0,)
    slope = torch.autograd.grad(terms.reverse_kl.sum(), student.weight)[0]
    assert torch.equal(slope, torch.zeros_like(slope))


TINY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    "model",
    [
        tiny_llama(0),
        Gemma2ForCausalLM(Gemma2Config(**TINY, final_logit_softcapping=0.4)),
        GraniteForCausalLM(GraniteConfig(**{k: v for k, v in TINY.items() if k != "head_dim"}, logits_scaling=0.25)),
        CohereForCausalLM(CohereConfig(**{k: v for k, v in TINY.items() if k != "head_dim"}, logit_scale=0.5)),
    ],
    ids=["plain", "softcap", "divided", "scaled"],
)
def test_lm_head_gives_the_logits_of_the_model(model: PreTrainedModel) -> None:
    input_ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        hidden = model.base_model(input_ids=input_ids).last_hidden_state
        torch.testing.assert_close(lm_head(model)(hidden[0]), model(input_ids=input_ids).logits[0].float())
        narrow = lm_head(model).narrowed(30)(hidden[0])
        torch.testing.assert_close(narrow, model(input_ids=input_ids).logits[0, :, :30].float())
