"""Tests the losses of hidden states: in chunks, with merged EOS ids, against TRL's fused loss, through every
lm_head."""

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
from python_tests.training.loss_cases import ROWS, VOCABULARY
from trbext.models.lm_head import LMHead, lm_head
from trbext.training.losses import PrefixTerms, chunked_reverse_kl, sampled_reverse_kl, teacher_terms
from trbext.vocab import Alignment


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
    other_eos = torch.full_like(tokens, 4)  # if another engine ended a rollout with it, it counts as e*
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


def test_chunks_minimize_another_loss_and_report_the_reverse_kl_without_gradient() -> None:
    student_hidden, teacher_hidden, student, teacher, tokens = heads()
    alignment, weights = Alignment(VOCABULARY, (1,), (1,)), torch.linspace(-1, 1, ROWS, dtype=torch.float64)
    terms = chunked_reverse_kl(
        student_hidden,
        teacher_hidden,
        student,
        teacher,
        tokens,
        alignment,
        loss=lambda *of_token: sampled_reverse_kl(*of_token[:4]),  # without the labels
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


def test_teacher_terms_by_themselves_equal_those_of_the_loss() -> None:
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
