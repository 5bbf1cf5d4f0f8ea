"""Stands in for a TRB engine: draws tokens of a known law, loses the drafts of some, and records as the hook does.

The distributions after a prefix depend on its last token only. Like vLLM, it stops at any token of its output, of which
the first is the one held out. An engine loses the drafts of a request without regard to what they are, and so does this
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from python_tests.vllm.token_law import Distributions, blend_by_bisection
from trbext.vllm.transport import EngineCompletion, Records, RolloutRequest
from trbext.vocab import Alignment

VOCABULARY, STOP, TOP_K = 6, 2, 2
ALIGNMENT = Alignment(VOCABULARY, (STOP,), (STOP,))


@cache
def law_after(epsilon: float) -> Distributions:
    """The distributions after each last token, [V, V]."""
    generator = torch.Generator().manual_seed(2)
    student, teacher = 1.5 * torch.randn(2, VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    budgets = torch.full((VOCABULARY,), epsilon, dtype=torch.float64)
    return blend_by_bisection(student.log_softmax(-1), teacher.log_softmax(-1), budgets)


def teacher_top(epsilon: float, last: int) -> tuple[Tensor, Tensor, Tensor]:
    """The student's `TOP_K` most probable tokens after `last`, log pi_T of each, and of all others together."""
    student, teacher = law_after(epsilon).student[last], law_after(epsilon).teacher[last]
    ids = student.topk(TOP_K).indices
    rest = torch.ones(VOCABULARY, dtype=torch.bool).index_fill(0, ids, False)
    return ids, teacher[ids], teacher[rest].logsumexp(0)


@dataclass
class FakeEngine:
    """An `Engine` of two replicas, each of which serves every other request."""

    lost: float = 0.0  # probability that the drafts of a token are lost, and the teacher draws it
    confesses: bool = True  # False: it records the teacher's tokens as if they had been drawn from mu
    faulty_key: int | None = None  # rollout of which a row is at fault
    fault_index: int = 1  # place of that row's token in the output of the request
    holds_out: bool = True  # False: the first token is not the one that was held out
    keeps_records: bool = True  # False: it forgets the second token of each rollout
    excess: float = 0.0  # nats by which it exceeds every budget
    max_model_len: int = 64
    requests: list[RolloutRequest] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    top_k: int = 0

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._records: list[list[dict[str, Any]]] = [[], []]
        self._teacher: list[list[tuple[int, int]]] = [[], []]

    def enable(self, **settings: Any) -> dict[str, Any]:
        self.top_k = settings["top_k"]
        return {"draft_length": 3, "max_model_len": self.max_model_len, **settings}

    def generate(self, requests: Sequence[RolloutRequest]) -> list[EngineCompletion]:
        self.requests += requests
        return [self._complete(request, number % 2) for number, request in enumerate(requests)]

    def _complete(self, request: RolloutRequest, replica: int) -> EngineCompletion:
        assert request.epsilon is not None
        law = law_after(request.epsilon + self.excess)
        tokens = [request.prompt[-1] if self.holds_out else 0]
        while len(tokens) <= request.max_new_tokens and tokens[-1] not in request.stop_token_ids:
            lost = self._random.random() < self.lost
            log_probs = (law.teacher if lost else law.mu)[tokens[-1]]
            token = int(self._random.choice(VOCABULARY, p=log_probs.exp().numpy()))
            if lost and self.confesses:
                self._teacher[replica].append((request.key, len(tokens)))
            elif self.keeps_records or len(tokens) != 2:
                self._record(replica, request, law, len(tokens), tokens[-1], token)
            tokens.append(token)
        # A block of drafts may go on past the end of its rollout. The engine drops these tokens, but records them.
        self._record(replica, request, law, len(tokens), tokens[-1], 0)
        return EngineCompletion.of(request, tokens)

    def _record(
        self, replica: int, request: RolloutRequest, law: Distributions, index: int, last: int, token: int
    ) -> None:
        of_token = {"key": request.key, "index": index, "token": token}
        names = {"student_log_prob": law.student, "teacher_log_prob": law.teacher, "log_prob": law.mu}
        values = {name: float(log_probs[last, token]) for name, log_probs in names.items()}
        if self.top_k:
            ids, log_prob, rest = teacher_top(request.epsilon or 0.0, last)
            values |= {"top_ids": ids.numpy(), "top_log_prob": log_prob.numpy(), "rest_log_prob": float(rest)}
        beta, kl = float(law.beta[last]), float(law.kl[last])
        self._records[replica].append({**of_token, **values, "beta": beta, "kl": kl})

    def take_records(self) -> list[Records]:
        taken = []
        for records, teacher in zip(self._records, self._teacher, strict=True):
            self._random.shuffle(records)  # the client may not rely on their order
            names = records[0] if records else {}
            answer = {name: np.array([record[name] for record in records]) for name in names}
            if not records:
                continue
            keys, places = zip(*teacher, strict=True) if teacher else ((), ())
            answer["teacher_key"], answer["teacher_index"] = np.array(keys, np.int64), np.array(places, np.int64)
            answer["fault_key"] = np.array([] if self.faulty_key is None else [self.faulty_key], np.int64)
            answer["fault_index"] = np.full_like(answer["fault_key"], self.fault_index)
            taken.append(answer)
            records.clear()
            teacher.clear()
        return taken

    def set_epsilon(self, epsilon: float) -> None:
        raise AssertionError("the client gives every request a budget of its own")

    def seed(self, seed: int) -> None:
        self.seeds.append(seed)
        self._random = np.random.default_rng(seed)

    def counters(self, *, clear: bool = False) -> list[dict[str, Any]]:
        return [{"steps": 1, "row_passes": 2, "tokens": 3, "accepted": 1}] * 2

    def preemptions(self) -> int | None:
        return None

    def load_student(self, folder: str) -> None:
        raise AssertionError("a draw loads no weights")

    def digest(self) -> list[dict[str, str]]:
        raise AssertionError("a draw compares no weights")

    @contextmanager
    def random_state(self) -> Iterator[None]:
        yield
