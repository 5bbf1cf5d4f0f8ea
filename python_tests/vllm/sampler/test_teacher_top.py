"""The teacher's distribution at the student's top tokens is that of a float64 softmax."""

from __future__ import annotations

import pytest
import torch

from trbext.vllm.sampler.teacher_top import teacher_top


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("indexed", [False, True])
def test_the_distribution_is_that_of_a_float64_softmax(dtype: torch.dtype, *, indexed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    n, width, k = 12, 300, 5
    logits = (8 * torch.randn(n + 6, width + 20, generator=generator)).to(dtype)
    logits[:, width:] = -torch.inf  # tokens that only the teacher has
    before = logits.clone()
    probs = (5 * torch.randn(n + 3, width, generator=generator)).softmax(-1)
    rows = torch.randperm(n + 6, generator=generator)[:n]
    student_rows = torch.randperm(n + 3, generator=generator)[:n] if indexed else None
    temperature = torch.rand(n, generator=generator) + 0.5

    top = teacher_top(logits, rows, probs, student_rows, temperature, k)

    torch.testing.assert_close(logits, before, rtol=0, atol=0)
    student = probs[:n] if student_rows is None else probs[student_rows]
    assert torch.equal(top.ids.long(), student.topk(k).indices)
    exact = (before[rows].double() / temperature[:, None].double()).log_softmax(-1)
    torch.testing.assert_close(top.log_prob.double(), exact.gather(-1, top.ids.long()), rtol=1e-5, atol=1e-5)
    rest = exact.scatter(-1, top.ids.long(), -torch.inf).logsumexp(-1)
    torch.testing.assert_close(top.rest_log_prob.double(), rest, rtol=1e-5, atol=1e-5)


def test_a_teacher_that_has_no_other_token_leaves_no_mass_for_the_rest() -> None:
    logits = torch.full((1, 8), -torch.inf)
    logits[0, :2] = torch.tensor([0.0, 1.0])
    probs = torch.tensor([[0.5, 0.4, 0.1, 0, 0, 0, 0, 0]])
    top = teacher_top(logits, torch.tensor([0]), probs, None, torch.ones(1), 2)
    assert top.rest_log_prob.item() == -torch.inf
    torch.testing.assert_close(top.log_prob.exp().sum(), torch.tensor(1.0))
