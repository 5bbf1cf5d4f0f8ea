"""Tests the loss of the add-on for verl: that of TRBTrainer, from the rows that a rollout or a teacher pool brings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trbext.training.losses import reverse_kl
from trbext.verl.loss_plugin import packed_reverse_kl
from trbext.verl.teacher_rows import REST, rows_of_completion, rows_of_pool, top_of_rows
from trbext.vllm.sampler.teacher_top import TeacherTop
from trbext.vocab import Alignment

VOCABULARY, PROMPT, COMPLETION = 24, 4, 6
ALIGNMENTS = {
    "same": Alignment(VOCABULARY, (2,), (2,)),
    "other EOS ids": Alignment(VOCABULARY, (2, 5), (7,)),
    "narrower": Alignment(VOCABULARY - 3, (2,), (7,)),
}


def logits_of_both() -> tuple[Tensor, Tensor]:
    """Logits of a student and a teacher at each token of a prompt and its completion, [S, V] each."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, PROMPT + COMPLETION, VOCABULARY, generator=generator, dtype=torch.float64)
    return student, teacher


def top_of(student: Tensor, teacher: Tensor, k: int, alignment: Alignment) -> TeacherTop:
    """What an engine says of a teacher with these logits at each prefix of the completion."""
    prefixes = slice(PROMPT - 1, PROMPT + COMPLETION - 1)
    of_student, of_teacher = (alignment.canonical(logits)[prefixes] for logits in (student, teacher))
    ids = of_student.topk(k).indices
    log_probs = of_teacher.log_softmax(-1)
    rest = log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1)
    return TeacherTop(ids.int(), log_probs.gather(-1, ids), rest)


@pytest.mark.parametrize("alignment", ALIGNMENTS.values(), ids=ALIGNMENTS)
@pytest.mark.parametrize("k", [1, 8])
def test_rows_of_a_rollout_give_the_loss_and_the_gradient_of_a_teacher_in_the_process(
    k: int, alignment: Alignment
) -> None:
    student, teacher = logits_of_both()
    prefixes = slice(PROMPT - 1, PROMPT + COMPLETION - 1)
    ours, theirs = (student.float().requires_grad_() for _ in range(2))
    rows = rows_of_completion(top_of(student, teacher, k, alignment), PROMPT)
    found = packed_reverse_kl(ours, *rows, alignment)
    aligned = alignment.canonical(theirs)
    expected = reverse_kl(aligned, alignment.canonical(teacher.float()), top_k=k)
    torch.testing.assert_close(found["distillation_losses"][prefixes], expected[prefixes], rtol=1e-5, atol=1e-6)
    found["distillation_losses"].sum().backward()
    expected[prefixes].sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    mass = aligned.detach().softmax(-1).topk(k).values.sum(-1)
    torch.testing.assert_close(found["student_mass"][prefixes], mass[prefixes])


def test_tokens_of_the_prompt_have_no_loss() -> None:
    student, teacher = logits_of_both()
    alignment = ALIGNMENTS["same"]
    found = packed_reverse_kl(student, *rows_of_completion(top_of(student, teacher, 8, alignment), PROMPT), alignment)
    outside = [*range(PROMPT - 1), PROMPT + COMPLETION - 1]
    assert found["distillation_losses"][outside].tolist() == [0.0] * len(outside)
    assert (found["distillation_losses"][PROMPT - 1 : -1] > 0).all()


def test_rows_keep_what_the_engine_said() -> None:
    student, teacher = logits_of_both()
    top = top_of(student, teacher, 3, ALIGNMENTS["same"])
    ids, log_probs = rows_of_completion(top, PROMPT)
    assert ids.shape == log_probs.shape == (PROMPT + COMPLETION, 4)
    assert (ids[:, -1] == REST).all()
    for found, said in zip(top_of_rows(ids[PROMPT - 1 : -1], log_probs[PROMPT - 1 : -1]), top, strict=True):
        torch.testing.assert_close(found.double(), said.double())


@pytest.mark.parametrize("alignment", ALIGNMENTS.values(), ids=ALIGNMENTS)
def test_whole_rows_of_a_teacher_pool_give_the_loss_over_the_full_vocabulary(alignment: Alignment) -> None:
    student, teacher = logits_of_both()
    log_probs, ids = teacher.log_softmax(-1).sort(descending=True)
    rows = rows_of_pool(ids.int(), log_probs.float(), alignment)
    found = packed_reverse_kl(student.float(), *rows, alignment)["distillation_losses"]
    expected = reverse_kl(alignment.canonical(student), alignment.canonical(teacher))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_teacher_s_own_top_tokens_bound_the_loss_from_below() -> None:
    student, teacher = logits_of_both()
    alignment = ALIGNMENTS["other EOS ids"]
    log_probs, ids = teacher.log_softmax(-1).sort(descending=True)
    full = reverse_kl(alignment.canonical(student), alignment.canonical(teacher))
    last = torch.zeros_like(full)
    for k in (2, 6, 12, VOCABULARY):
        rows = rows_of_pool(ids[:, :k].int(), log_probs[:, :k].float(), alignment)
        found = packed_reverse_kl(student.float(), *rows, alignment)["distillation_losses"].double()
        assert (found <= full + 1e-5).all()
        if k > 2:
            assert found.mean() > last.mean()
        last = found


def test_a_sure_teacher_of_a_pool_keeps_the_rest() -> None:
    """Float32 has no rest beside 1 - 1e-9, and without one the loss would forget half of the student."""
    alignment = ALIGNMENTS["same"]
    student, teacher = logits_of_both()
    student[:], teacher[:] = -20.0, -21.0
    student[:, 4:6], teacher[:, 4] = 0.0, 0.0
    log_probs, ids = teacher.log_softmax(-1).sort(descending=True)
    rows = rows_of_pool(ids[:, :1].int(), log_probs[:, :1].float(), alignment)
    found = packed_reverse_kl(student.float(), *rows, alignment)["distillation_losses"].double()
    full = reverse_kl(student, teacher)
    assert (found <= full).all()
    assert (found > 6).all()
