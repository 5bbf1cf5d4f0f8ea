"""Takes rows from the rollouts of the SmolLM2 pair, and times the operator's share of its lockstep decoding step."""

from __future__ import annotations

import importlib
import itertools
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from trbext.rollout import Rollout, lockstep
from trbext.vocab import Alignment, align


@dataclass(frozen=True)
class Pair:
    """A student and a teacher of one vocabulary, with the prompts that were written beside them."""

    directory: Path
    student: Any
    teacher: Any
    tokenizer: Any
    alignment: Alignment

    @property
    def pad_token_id(self) -> int:
        """The id of the padding."""
        return int(self.tokenizer.pad_token_id)

    def prompts(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns (input_ids, attention_mask), [count, P] left padded: the first training prompts as chats."""
        path = self.directory / "prompts" / "train.jsonl"
        with path.open(encoding="utf-8") as lines:
            conversations = [json.loads(line)["prompt"] for line in itertools.islice(lines, count)]
        if len(conversations) < count:
            raise ValueError(f"{path} must hold at least {count} prompts, got {len(conversations)}")
        encoded = self.tokenizer.apply_chat_template(
            conversations, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        return encoded["input_ids"], encoded["attention_mask"]

    def rollout(
        self, input_ids: Tensor, mask: Tensor, *, epsilon: float, new_tokens: int, generator: torch.Generator
    ) -> Rollout:
        """Returns completions of the prompts that the pair wrote in lockstep at the budget `epsilon`.

        Args:
            input_ids: [B, P], left padded.
            mask: [B, P].
            epsilon: KL budget, nats.
            new_tokens: Largest length of a completion.
            generator: Of the random numbers.
        """
        return lockstep(
            self.student,
            self.teacher,
            input_ids,
            mask,
            epsilon=epsilon,
            max_new_tokens=new_tokens,
            alignment=self.alignment,
            pad_token_id=self.pad_token_id,
            generator=generator,
        )


def load_pair(directory: Path) -> Pair:
    """Loads the models of `directory`/student and `directory`/teacher in their files' dtype, on the CPU."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for part in ("student/config.json", "teacher/config.json", "prompts/train.jsonl"):
        if not (directory / part).is_file():
            raise FileNotFoundError(
                f"{directory} must be a folder written by recipes/smollm2_pruned.py, but has no {part}"
            )
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(directory / name, dtype="auto").eval() for name in ("student", "teacher")
    )
    tokenizer = AutoTokenizer.from_pretrained(directory / "student", padding_side="left")
    return Pair(directory, student, teacher, tokenizer, align(student, teacher, tokenizer, tokenizer))


def real_rows(
    directory: Path, *, texts: int = 8, new_tokens: int = 64, epsilon: float = 0.02, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Computes the logits of the SmolLM2 pair at every position of `texts` texts.

    A text is a word problem of `directory`/prompts/train.jsonl and a completion of at most `new_tokens` tokens that the
    pair wrote in lockstep at the budget `epsilon`, so a rollout blends such rows. There are about 100 to 200 per text
    (400 kB each for both models), in random order, so that the first ones are a fair sample of all.

    Args:
        directory: The folder that recipes/smollm2_pruned.py writes.
        texts: Number of texts.
        new_tokens: Largest length of a completion, tokens.
        epsilon: KL budget, nats.
        seed: Seed of the completions and of the order of the rows.

    Returns:
        student and teacher logits, each [P, 49152] float32.
    """
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


@dataclass(frozen=True)
class Decoding:
    """One lockstep decoding step: both models' forward passes, the operator, and the bookkeeping of the rollout."""

    batch: int
    vocab: int
    dtype: str  # of the logits
    steps: int  # that were measured, without the prefill
    step: float  # seconds, median
    operator: float  # seconds inside trbext.sample, median

    @property
    def share(self) -> float:
        """The operator's share of a step."""
        return self.operator / self.step


def time_decoding(
    directory: Path, *, epsilon: float, batch: int = 32, new_tokens: int = 32, repetitions: int = 3
) -> Decoding:
    """Times `trbext.rollout.lockstep` over `batch` prompts. A step lasts from one draw's end to the next one's.

    Args:
        directory: The folder that recipes/smollm2_pruned.py writes.
        epsilon: KL budget, nats.
        batch: Prompts.
        new_tokens: Largest length of a completion.
        repetitions: Rollouts that are timed.

    Returns:
        The times of a step, medians.
    """
    pair = load_pair(directory)
    input_ids, mask = pair.prompts(batch)
    module = importlib.import_module("trbext.rollout.policies")
    draw = module.sample
    spans: list[tuple[float, float]] = []

    def timed_draw(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        drawn = draw(*arguments, **options)
        spans.append((start, time.perf_counter()))
        return drawn

    steps: list[float] = []
    draws: list[float] = []
    with patch.object(module, "sample", timed_draw):
        for repetition in range(repetitions + 1):  # the first one warms up
            spans.clear()
            seeded = torch.Generator().manual_seed(0)
            pair.rollout(input_ids, mask, epsilon=epsilon, new_tokens=new_tokens, generator=seeded)
            if repetition > 0:
                steps += [later[1] - earlier[1] for earlier, later in itertools.pairwise(spans)]
                draws += [end - start for start, end in spans[1:]]
    dtype = str(pair.student.dtype).removeprefix("torch.")
    return Decoding(batch, pair.alignment.width, dtype, len(steps), statistics.median(steps), statistics.median(draws))
