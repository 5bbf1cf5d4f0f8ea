"""Pairs of logits to blend: synthetic rows shaped like a language model's at any vocabulary, and the SmolLM2 pair's."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

HEAD = 200  # likely tokens, far above the bulk
HEAD_TOP, HEAD_FALL, HEAD_JITTER, BULK = 22.0, 0.7, 0.7, 2.2  # nats
NOISE_HEAD, NOISE_BULK = 1.0, 0.5  # of the teacher's logits around the student's, nats


def language_model_rows(rows: int, vocab: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(student, teacher), each [rows, vocab] float32: a Gaussian bulk and a head of about 200 likely tokens, whose
    logits fall as rank^0.6; the teacher is the student with noise, twice as much on the head as in the bulk.

    The student's entropy is about 2.4 nats, KL(teacher || student) 0.08 to 1.2 nats, so a budget of 0.02 always binds.
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


def real_rows(
    directory: Path, *, texts: int = 8, new_tokens: int = 64, epsilon: float = 0.02, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """(student, teacher), each [P, 49152] float32: the logits of the SmolLM2 pair at every position of `texts` texts.

    A text is a word problem of `directory`/prompts/train.jsonl and a completion of at most `new_tokens` tokens that the
    pair wrote in lockstep at the budget `epsilon`, so the rows are what a rollout blends. About 100 to 200 rows a text
    (400 kB each for both models), in random order, so that the first ones are a fair sample of all.

    directory: as recipes/smollm2_pruned.py writes it.
    """
    from ..operators.decoding import load_pair

    pair = load_pair(directory)
    input_ids, mask = pair.prompts(texts)
    generator = torch.Generator().manual_seed(seed)
    rollout = pair.rollout(input_ids, mask, epsilon=epsilon, new_tokens=new_tokens, generator=generator)
    collected: tuple[list[Tensor], list[Tensor]] = ([], [])
    for prompt, real, tokens, written in zip(input_ids, mask, rollout.tokens, rollout.mask, strict=True):
        text = torch.cat([prompt[real.bool()], tokens[written]])[None]
        for model, logits in zip((pair.student, pair.teacher), collected, strict=True):
            with torch.no_grad():
                logits.append(pair.alignment.canonical(model(input_ids=text).logits[0]).float())
    student, teacher = (torch.cat(logits) for logits in collected)
    order = torch.randperm(len(student), generator=generator)
    return student[order], teacher[order]
