"""Rolls out at a KL budget, and lets one model continue from a prefix (the paper's step-0 probe).

A prefix is useful if a model can still finish it: roll out with TRB and with the student (OPD), truncate at length t,
continue with the teacher or with the student, and compare how often the result is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.encoding import encode_prompts, left_padded
from ...evaluation.verifiers import Verifier, check_verified, judge
from ...limits import in_float32
from ...rollout import Rollout, lockstep
from ...vocab import Alignment, align

Continuer = Literal["teacher", "student"]

# Streams of random numbers. Rollouts of all budgets share theirs, so that budgets are compared on equal luck.
ROLLOUTS, CONTINUATIONS = 0, 1


@dataclass(frozen=True)
class Completions:
    """One rollout of each of N prompts, at one budget."""

    epsilon: float
    tokens: list[list[int]]  # [N] the EOS included
    finished: list[bool]  # [N] ended by itself
    correct: list[bool]  # [N]
    teacher_log_prob: list[float]  # [N] mean over tokens of log pi_T, nats; -inf if the teacher excludes a token
    student_log_prob: list[float]  # [N] mean over tokens of log pi_S


@dataclass(frozen=True)
class Probe:
    """Two models, prompts and a judge."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    alignment: Alignment
    rows: Sequence[Mapping[str, Any]]  # with "prompt", and what the verifier reads
    verifier: Verifier
    max_new_tokens: int
    temperature: float
    batch_size: int
    seed: int
    chat_template: Mapping[str, Any]

    def roll_out(self, epsilon: float) -> Completions:
        """Completes every prompt at the budget `epsilon` (nats per token; 0 is vanilla OPD)."""
        prompts = self._prompt_ids()
        tokens: list[list[int]] = []
        finished: list[bool] = []
        scores: dict[str, list[float]] = {"teacher": [], "student": []}
        for start in range(0, len(prompts), self.batch_size):
            batch = prompts[start : start + self.batch_size]
            # A budget per row, although all are equal: at the float 0 the teacher would not be evaluated.
            budget = torch.full((len(batch),), in_float32(epsilon))
            rollout = self._decode(self.student, self.teacher, batch, budget, self.max_new_tokens, (ROLLOUTS, start))
            assert rollout.teacher_log_prob is not None
            tokens += _kept(rollout)
            finished += rollout.finished.tolist()
            for name, values in (("teacher", rollout.teacher_log_prob), ("student", rollout.student_log_prob)):
                scores[name] += (values.double().sum(1) / rollout.lengths).tolist()
        return Completions(epsilon, tokens, finished, self._judged(tokens), scores["teacher"], scores["student"])

    def continued(self, completions: Completions, length: int, by: Continuer) -> list[bool]:
        """Lets one model write everything after the first tokens of each completion, and judges the result.

        Args:
            completions: Rollouts; a completion that had ended by `length` stays as it is.
            length: Tokens that are kept.
            by: The model that continues.

        Returns:
            Whether each result is right.
        """
        model = self.teacher if by == "teacher" else self.student
        going_on = [
            index
            for index, (tokens, finished) in enumerate(zip(completions.tokens, completions.finished, strict=True))
            if not (finished and len(tokens) <= length)
        ]
        prompts, results = self._prompt_ids(), list(completions.tokens)
        for start in range(0, len(going_on), self.batch_size):
            batch = going_on[start : start + self.batch_size]
            prefixes = [prompts[index] + completions.tokens[index][:length] for index in batch]
            where = (CONTINUATIONS, start, length, int(by == "teacher"))
            rollout = self._decode(model, None, prefixes, 0.0, self.max_new_tokens - length, where)
            for index, more in zip(batch, _kept(rollout), strict=True):
                results[index] = completions.tokens[index][:length] + more
        return self._judged(results)

    def _decode(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel | None,
        prompts: list[list[int]],
        epsilon: float | torch.Tensor,
        max_new_tokens: int,
        where: tuple[int, ...],
    ) -> Rollout:
        alignment = self.alignment if teacher is not None else align(model, model)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else alignment.stop
        input_ids, mask = left_padded(prompts, pad, model.device)
        seed = int(np.random.SeedSequence((self.seed, *where)).generate_state(1, np.uint64)[0])
        return lockstep(
            model,
            teacher,
            input_ids,
            mask,
            epsilon=epsilon,
            max_new_tokens=max_new_tokens,
            alignment=alignment,
            pad_token_id=pad,
            temperature=self.temperature,
            generator=torch.Generator().manual_seed(seed),
        )

    def _prompt_ids(self) -> list[list[int]]:
        return encode_prompts(self.tokenizer, [row["prompt"] for row in self.rows], **self.chat_template)

    def _judged(self, tokens: Sequence[Sequence[int]]) -> list[bool]:
        texts = [[str(self.tokenizer.decode(list(ids), skip_special_tokens=True))] for ids in tokens]
        correct, errors, first_error = judge(self.rows, texts, self.verifier)
        check_verified(errors, len(texts), first_error)
        return [count == 1 for count in correct]


def _kept(rollout: Rollout) -> list[list[int]]:
    return [ids[kept].tolist() for ids, kept in zip(rollout.tokens.cpu(), rollout.mask.cpu(), strict=True)]
