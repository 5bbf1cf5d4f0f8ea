"""Makes pairs of logits to blend: synthetic rows shaped like a language model's, at any vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

HEAD = 200  # likely tokens, far above the bulk
HEAD_TOP, HEAD_FALL, HEAD_JITTER, BULK = 22.0, 0.7, 0.7, 2.2  # nats
NOISE_HEAD, NOISE_BULK = 1.0, 0.5  # of the teacher's logits around the student's, nats


def language_model_rows(rows: int, vocab: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Makes a pair of rows: a Gaussian bulk and a head of about 200 likely tokens, whose logits fall as rank^0.6.

    The teacher is the student with noise, twice as much on the head as in the bulk. The student's entropy is about
    2.4 nats, KL(teacher || student) 0.08 to 1.2 nats, so a budget of 0.02 always binds.

    Args:
        rows: Number of rows.
        vocab: Tokens of a row.
        seed: Seed of the generator.

    Returns:
        student and teacher logits, each [rows, vocab] float32.
    """
    generator = torch.Generator().manual_seed(seed)
    head = min(HEAD, max(1, vocab // 5))
    student = torch.randn(rows, vocab, generator=generator).mul_(BULK)
    chosen = torch.randint(vocab, (rows, head), generator=generator)
    likely = HEAD_TOP - HEAD_FALL * torch.arange(head) ** 0.6
    student.scatter_(1, chosen, likely + HEAD_JITTER * torch.randn(rows, head, generator=generator))
    teacher = torch.randn(rows, vocab, generator=generator).mul_(NOISE_BULK)
    teacher.scatter_(1, chosen, NOISE_HEAD * torch.randn(rows, head, generator=generator))
    return student, teacher.add_(student)
