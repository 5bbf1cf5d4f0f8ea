"""Stands in for vLLM: engines of the same calls and records, whose rollouts our own decoder draws."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM, set_seed

from trbext.data.encoding import left_padded
from trbext.rollout import Rollout, speculative
from trbext.training.config import TRBConfig
from trbext.training.engine.build import EngineModels
from trbext.training.fields.engine import engine_draft_length
from trbext.vllm.transport import EngineCompletion, Records, RolloutRequest
from trbext.vocab import Alignment

PAD = 0


@dataclass
class FakeEngines:
    """What the engines of a test did, and what they shall do."""

    built: list[str] = field(default_factory=list)  # "trb" and "student", in order
    ended: list[str] = field(default_factory=list)
    loads: list[int] = field(default_factory=list)  # tensors of each load of the student's weights
    asked: list[list[RolloutRequest]] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)  # of the engine with the teacher
    seeds: list[int] = field(default_factory=list)
    engines: list[Any] = field(default_factory=list)
    lose: set[int] = field(default_factory=set)  # calls of generate in which the first rollout loses its second token
    touched: bool = False  # whether loading the student also changes the teacher

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Makes trainers use these engines instead of vLLM's."""

        def trb(args: TRBConfig, models: EngineModels) -> FakeEngine:
            return FakeEngine(self, models, engine_draft_length(args))

        def student(args: TRBConfig, models: EngineModels, alignment: Alignment) -> FakeStudent:
            return FakeStudent(self, models, alignment)

        monkeypatch.setattr("trbext.training.engine.rollouts.trb_engine", trb)
        monkeypatch.setattr("trbext.training.engine.rollouts.student_engine", student)
        monkeypatch.setattr("trbext.training.engine.build.vllm_is_installed", lambda: True)


class OneOfThem:
    """What both engines have: the student, and a name."""

    name = ""

    def __init__(self, book: FakeEngines, models: EngineModels) -> None:
        self.book = book
        set_seed(0)  # as vLLM does: of Python, NumPy and torch
        self.student = LlamaForCausalLM.from_pretrained(models.student, dtype=models.dtype).eval()
        book.built.append(self.name)
        book.engines.append(self)

    def load_student_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        state = {name: weight.clone() for name, weight in weights}
        missing, unexpected = self.student.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(name == "lm_head.weight" for name in missing)  # tied
        self.book.loads.append(len(state))

    def shut_down(self) -> None:
        self.book.ended.append(self.name)


class FakeEngine(OneOfThem):
    """An engine of teacher and student, as `trbext.vllm.transport.Engine` defines it."""

    name = "trb"

    def __init__(self, book: FakeEngines, models: EngineModels, draft_length: int) -> None:
        super().__init__(book, models)
        self.teacher = LlamaForCausalLM.from_pretrained(models.teacher, dtype=models.dtype).eval()
        self.draft_length = draft_length
        self.generator = torch.Generator()
        self.clear()

    def clear(self) -> None:
        self.counted = {"steps": 0, "row_passes": 0, "tokens": 0, "accepted": 0}

    def enable(self, **settings: Any) -> dict[str, Any]:
        self.top_k = settings["top_k"]
        eos = (settings["stop"], *settings["merged"])
        self.alignment = Alignment(settings["width"], eos, ())
        return {**settings, "draft_length": self.draft_length, "max_model_len": 128}

    def seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)
        self.book.seeds.append(seed)

    def set_epsilon(self, epsilon: float) -> None:
        raise AssertionError("each request names its own budget")

    def generate(self, requests: Sequence[RolloutRequest]) -> list[EngineCompletion]:
        self.book.asked.append(list(requests))
        prompts, mask = left_padded([request.prompt for request in requests], PAD, torch.device("cpu"))
        longest = max(request.max_new_tokens for request in requests)
        rollout = speculative(
            self.student,
            self.teacher,
            prompts,
            mask,
            epsilon=torch.tensor([request.epsilon for request in requests]),
            max_new_tokens=longest,
            alignment=self.alignment,
            pad_token_id=PAD,
            draft_length=self.draft_length,
            temperature=requests[0].temperature,
            generator=self.generator,
        )
        self.book.rollouts.append(rollout)
        assert rollout.speculation is not None
        self.counted["steps"] += rollout.speculation.rounds
        self.counted["row_passes"] += rollout.speculation.row_passes
        self.counted["tokens"] += rollout.speculation.drafted
        self.counted["accepted"] += rollout.speculation.accepted
        lost = len(self.book.asked) in self.book.lose
        self.records = self._records(requests, rollout, prompts, mask, lost=lost)
        completions = []
        for row, request in enumerate(requests):
            tokens = rollout.tokens[row][rollout.mask[row]][: request.max_new_tokens].tolist()
            completions.append(EngineCompletion([request.prompt[-1], *tokens], tokens[-1] == request.stop))
        return completions

    def _records(
        self, requests: Sequence[RolloutRequest], rollout: Rollout, prompts: Tensor, mask: Tensor, *, lost: bool
    ) -> Records:
        known = rollout.mask.clone()
        if lost:
            known[0, 1:] = False
        row, place = known.nonzero(as_tuple=True)
        values = {name: getattr(rollout, name)[row, place].numpy() for name in ("log_prob", "student_log_prob")}
        assert rollout.teacher_log_prob is not None
        values |= {"beta": rollout.beta[row, place].numpy(), "kl": rollout.kl[row, place].numpy()}
        keys = np.array([request.key for request in requests])
        records: Records = {
            "key": keys[row.numpy()],
            "index": place.numpy() + 1,
            "token": rollout.tokens[row, place].numpy(),
            "teacher_log_prob": rollout.teacher_log_prob[row, place].numpy(),
            "teacher_key": keys[:1] if lost else keys[:0],
            "teacher_index": np.array([2] if lost else [], np.int64),
            "fault_key": keys[:0],
            "fault_index": keys[:0],
            **values,
        }
        if self.top_k:
            temperature = requests[0].temperature
            ids = torch.cat([prompts, rollout.tokens], 1)
            seen = torch.cat([mask, rollout.mask.long()], 1)
            student, teacher = (
                self.alignment.canonical(self._logits(model, ids, seen, rollout.tokens.shape[1]), temperature)
                for model in (self.student, self.teacher)
            )
            top = student.topk(self.top_k).indices
            log_probs = (teacher / temperature).log_softmax(-1)
            rest = log_probs.scatter(-1, top, -torch.inf).logsumexp(-1)
            records["top_ids"] = top[row, place].int().numpy()
            records["top_log_prob"] = log_probs.gather(-1, top)[row, place].numpy()
            records["rest_log_prob"] = rest[row, place].numpy()
        return records

    def _logits(self, model: LlamaForCausalLM, ids: Tensor, mask: Tensor, length: int) -> Tensor:
        with torch.no_grad():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits: Tensor = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        return logits[:, -length - 1 : -1].float()

    def counters(self, *, clear: bool = False) -> list[dict[str, Any]]:
        counted = dict(self.counted)
        if clear:
            self.clear()
        return [counted]

    def take_records(self) -> list[Records]:
        taken, self.records = getattr(self, "records", None), None
        return [] if taken is None else [taken]

    def preemptions(self) -> int | None:
        return sum(call <= len(self.book.asked) for call in self.book.lose)

    def load_student_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        super().load_student_weights(weights)
        if self.book.touched:
            with torch.no_grad():
                self.teacher.lm_head.weight[0, 0] += 1

    def load_student(self, folder: str) -> None:
        """As a server does, which sees only the folder."""
        self.load_student_weights(load_file(f"{folder}/model.safetensors").items())

    def digest(self) -> list[dict[str, str]]:
        names = ("teacher", "student")
        sums = [sum(float(p.detach().double().sum()) for p in getattr(self, name).parameters()) for name in names]
        return [dict(zip(names, map(str, sums), strict=True))]

    def random_state(self) -> AbstractContextManager[None]:
        return nullcontext()


class FakeStudent(OneOfThem):
    """An engine of the student alone, as `trbext.vllm.student_engine.StudentEngine`."""

    name = "student"

    def __init__(self, book: FakeEngines, models: EngineModels, alignment: Alignment) -> None:
        super().__init__(book, models)
        self.alignment = alignment

    def draw(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        ids, mask = left_padded([list(prompt) for prompt in prompts], PAD, torch.device("cpu"))
        self.book.seeds.append(seed)
        rollout = speculative(
            self.student,
            None,
            ids,
            mask,
            epsilon=0.0,
            max_new_tokens=max_new_tokens,
            alignment=self.alignment,
            pad_token_id=PAD,
            temperature=temperature,
            generator=torch.Generator().manual_seed(seed),
        )
        return [tokens[kept].tolist() for tokens, kept in zip(rollout.tokens, rollout.mask, strict=True)]


def same_weights(engine: OneOfThem, model: Any) -> bool:
    """Whether the student of an engine has the weights of `model`."""
    theirs = copy.copy(engine.student.state_dict())
    return all(torch.equal(theirs[name], weight) for name, weight in model.state_dict().items())
