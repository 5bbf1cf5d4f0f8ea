"""Draws completions that follow mu from the engine of one replica, for many callers at a time.

verl's agent loops ask a replica for one completion each, whenever they are ready. A completion is therefore held out,
recorded and repaired by itself here, where `trbext.vllm.client` does so for a batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch

from ..errors import EngineRefused
from ..rollout.output import Rollout, Speculation
from ..vllm.assembly import Assembly
from ..vllm.engine import slack
from ..vllm.requests import check_draw
from ..vllm.sampler.teacher_top import TeacherTop
from ..vllm.transport import EngineCompletion, Records, RolloutRequest
from ..vocab import Alignment

STALLED_ROUNDS = 50  # repairs of one completion without a new token, after which the engine is too small for it
NOT_COUNTED = Speculation(rounds=0, row_passes=0, drafted=0, accepted=0)  # the engine counts for all requests together


@dataclass(frozen=True)
class ReplicaAnswer:
    """What a replica said to one request."""

    completion: EngineCompletion
    aborted: bool = False  # verl ended it before its end, to load new weights


@dataclass(frozen=True)
class Drawn:
    """One completion of one prompt."""

    rollout: Rollout  # of one row, on the CPU; of no row if the completion was aborted before its first token
    teacher_top: TeacherTop | None  # [1, T, K] and [1, T]
    repaired: int  # times that it was cut at a token of the teacher, and continued from there
    aborted: bool

    @property
    def tokens(self) -> list[int]:
        """The completion."""
        return [int(token) for token in self.rollout.tokens[0].tolist()]


class ReplicaRollouts:
    """Draws completions of one replica.

    Args:
        alignment: The vocabulary that both models share.
        take_records: Takes the records of all workers of the engine (`WorkerExtension.trb_take_records`).
        max_model_len: Of the engine's handshake, tokens.
        draft_length: Of the engine.
        top_k: Tokens of the teacher's distribution that the engine records; 0 is none.
        repair: Draws a completion again from where the engine lost its drafts; False raises.
    """

    def __init__(
        self,
        alignment: Alignment,
        take_records: Callable[[], Awaitable[Sequence[Records]]],
        *,
        max_model_len: int,
        draft_length: int,
        top_k: int,
        repair: bool = True,
    ) -> None:
        self.alignment, self.top_k, self.repair = alignment, top_k, repair
        self.longest = max_model_len - slack(draft_length)  # tokens of a prompt and its completion
        self._take_records = take_records
        self._mailbox, self._taking = Mailbox(), asyncio.Lock()
        self._of_events = torch.Generator()  # of labels that no loss of verl reads

    async def draw(
        self,
        prompt: Sequence[int],
        ask: Callable[[RolloutRequest, int], Awaitable[ReplicaAnswer]],
        *,
        epsilon: float,
        max_new_tokens: int,
        temperature: float,
    ) -> Drawn:
        """Draws one completion.

        Args:
            prompt: Token ids, at least two.
            ask: Sends a request to the engine under the number that its records will have.
            epsilon: KL budget in nats per token.
            max_new_tokens: Of the completion, at least 1.
            temperature: At least 0.01.

        Raises:
            EngineRefused: The budget, the temperature or a length does not fit.
            RuntimeError: Logits were at fault, the budget was not kept, or the engine keeps losing drafts.
        """
        check_draw([prompt], [epsilon], max_new_tokens, temperature, self.alignment)
        if len(prompt) + max_new_tokens > self.longest:
            raise EngineRefused(
                f"a prompt and its completion must have at most {self.longest} tokens, max_model_len without "
                f"3 draft_length + 1, got {len(prompt)} + {max_new_tokens}: raise rollout.max_model_len"
            )
        assembly, repaired, stalled = Assembly(1, max_new_tokens, self.top_k), 0, 0
        while True:
            request = RolloutRequest(
                prompt=[*prompt, *assembly.tokens_of(0)],
                key=0,
                max_new_tokens=max_new_tokens - assembly.length_of(0),
                temperature=temperature,
                stop=self.alignment.stop,
                epsilon=epsilon,
            )
            number = self._mailbox.expect()
            try:
                answer = await ask(request, number)
                await self._sort_records()
            finally:
                records = self._mailbox.close(number)
            if answer.aborted and not answer.completion.tokens:
                break
            written, cut = assembly.add([request], [answer.completion], records)
            if answer.aborted or not cut:
                break
            if not self.repair:
                raise RuntimeError(
                    "the engine drew a token from the teacher, for want of the student's drafts: give it more memory "
                    "for KV caches, or set repair"
                )
            repaired += 1
            stalled = 0 if written else stalled + 1
            if stalled == STALLED_ROUNDS:
                raise RuntimeError(
                    f"the engine drew no token of a completion from mu in {stalled} attempts: it is too small for it"
                )
        assembly.check_budget(np.array([epsilon]))
        rollout, top = assembly.rollout(
            pad_token_id=self.alignment.stop, speculation=NOT_COUNTED, of_events=self._of_events
        )
        return Drawn(rollout, top, repaired, answer.aborted)

    async def _sort_records(self) -> None:
        """Takes what the engine has recorded of all requests. One caller at a time: the records go to whoever asks."""
        async with self._taking:
            self._mailbox.put(await self._take_records())


# The arrays of `StepRecords.take` that are not of tokens from mu, and the one that says whose they are.
KEY_OF = {
    "teacher_key": "teacher_key",
    "teacher_index": "teacher_key",
    "fault_key": "fault_key",
    "fault_index": "fault_key",
}
KEYS = ("key", "teacher_key", "fault_key")


class Mailbox:
    """The records of open requests.

    A request gets a number of its own that is never used again: an engine may compute tokens past the end of a request,
    and their records may come after it was closed.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self._open: dict[int, list[Records]] = {}

    def expect(self) -> int:
        """Returns the number of a new request."""
        number = next(self._numbers)
        self._open[number] = []
        return number

    def put(self, taken: Iterable[Records]) -> None:
        """Sorts records (`StepRecords.take`). Those of requests that are not open are dropped."""
        for records in taken:
            present = np.unique(np.concatenate([records[key] for key in KEYS]))
            for number in present.tolist():
                if number in self._open:
                    self._open[number].append(_of(records, number))

    def close(self, number: int) -> list[Records]:
        """Returns the records of a request, with the key 0, and forgets it."""
        return self._open.pop(number, [])


def _of(records: Records, number: int) -> Records:
    """The records of one request, with the key 0."""
    chosen = {key: np.flatnonzero(records[key] == number) for key in KEYS}
    found = {name: values[chosen[KEY_OF.get(name, "key")]] for name, values in records.items()}
    return {**found, **{key: np.zeros_like(found[key]) for key in KEYS}}
