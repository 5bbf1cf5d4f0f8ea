"""Draws rollouts from a TRB engine that follow mu exactly, and brings back what was computed of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from operator import index

import numpy as np

from ..errors import EngineFailed, EngineRefused
from ..rollout.events import stream_of
from ..rollout.output import Rollout, Speculation
from ..vocab import Alignment
from .assembly import Assembly
from .engine import slack
from .requests import check_draw
from .sampler.teacher_top import TeacherTop
from .transport import Engine, RolloutRequest

STALLED_ROUNDS = 5  # repairs without a new token, after which the engine is too small for these rollouts


@dataclass(frozen=True)
class EngineDraw:
    """Rollouts of an engine, and what happened on the way."""

    rollout: Rollout  # on the CPU
    teacher_top: TeacherTop | None  # [B, T, K] and [B, T], of masked tokens as the first id; None unless asked for
    rounds: int  # of requests; more than one if rollouts had to be repaired
    repaired: int  # rollouts cut at a token of the teacher, and continued from there; counted once per round
    preemptions: int | None  # of requests; None if the engine does not count them


class EngineRollouts:
    """Draws rollouts of `alignment`'s student under its teacher.

    Args:
        engine: A `LocalEngine` or an `HTTPEngine`.
        alignment: The vocabulary that both models share.
        pad_token_id: Follows the end of a row.
        top_k: Tokens of the teacher's distribution that are brought back for each token of a rollout; 0 is none.

    Raises:
        RuntimeError: The engine is not one whose tokens would follow mu.
    """

    def __init__(self, engine: Engine, alignment: Alignment, *, pad_token_id: int, top_k: int = 0) -> None:
        self.engine, self.alignment, self.pad_token_id, self.top_k = engine, alignment, pad_token_id, top_k
        self._of_events = stream_of(0)
        self.handshake = engine.enable(
            width=alignment.width, stop=alignment.stop, merged=list(alignment.duplicates), top_k=top_k
        )

    def longest(self) -> int:
        """Tokens that a prompt and its completion may have together."""
        return int(self.handshake["max_model_len"]) - slack(int(self.handshake["draft_length"]))

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        epsilon: float | Sequence[float],
        max_new_tokens: int,
        temperature: float = 1.0,
        seed: int | None = None,
        repair: bool = True,
    ) -> EngineDraw:
        """Draws one completion of each prompt.

        Args:
            prompts: B lists of token ids, each of at least two.
            epsilon: KL budget in nats per token, one for all or one each; 0 is the student, infinity the teacher.
            max_new_tokens: Of a completion, at least 1.
            temperature: At least 0.01.
            seed: Of the engine. The same one gives the same rollouts if the engine decodes them in the same batches, as
                one in this process does. None continues with the numbers of the last draw.
            repair: Draws a rollout again from where the engine lost its drafts, and the teacher drew; False raises.

        Raises:
            EngineRefused: An argument is no number, a budget negative or NaN, the temperature or a prompt too small, or
                a rollout too long for the engine.
            NonFiniteLogits: Logits were at fault.
            EngineFailed: The budget was not kept, or the engine keeps losing drafts.
        """
        # 1. Check what the engine would answer wrongly.
        try:
            prompts = [[index(token) for token in prompt] for prompt in prompts]
        except TypeError:
            raise EngineRefused(f"prompts must be lists of token ids, got {prompts!r:.80}") from None
        if not isinstance(seed, Integral | None):
            raise EngineRefused(f"seed must be a whole number, got {seed!r}")
        given = np.asarray(epsilon, np.float64)
        budgets: list[float] = [float(given)] * len(prompts) if given.ndim == 0 else given.tolist()
        check_draw(prompts, budgets, max_new_tokens, temperature, self.alignment)
        self._check_length(max(map(len, prompts)), max_new_tokens)
        # JSON does not know the numbers of numpy.
        max_new_tokens, temperature, seed = int(max_new_tokens), float(temperature), seed if seed is None else int(seed)
        # 2. Ask until every rollout is whole.
        preempted = self.engine.preemptions()
        self.engine.counters(clear=True)
        assembly = Assembly(len(prompts), max_new_tokens, self.top_k)
        todo, rounds, repaired, stalled = list(range(len(prompts))), 0, 0, 0
        with self.engine.random_state():
            if seed is not None:
                self.engine.seed(seed)
            self.engine.take_records()  # what an interrupted draw may have left
            while todo:
                requests = [
                    RolloutRequest(
                        prompt=[*prompts[row], *assembly.tokens_of(row)],
                        key=row,
                        max_new_tokens=max_new_tokens - assembly.length_of(row),
                        temperature=temperature,
                        stop=self.alignment.stop,
                        epsilon=budgets[row],
                    )
                    for row in todo
                ]
                completions = self.engine.generate(requests)
                written, cut = assembly.add(requests, completions, self.engine.take_records())
                rounds, repaired = rounds + 1, repaired + len(cut)
                if cut and not repair:
                    raise EngineFailed(
                        f"the engine drew tokens of {len(cut)} rollouts from the teacher, for want of the student's "
                        "drafts: give it more memory for KV caches, or set repair"
                    )
                stalled = 0 if written else stalled + 1
                if stalled == STALLED_ROUNDS:
                    raise EngineFailed(
                        f"the engine drew no token of {len(cut)} rollouts from mu in {stalled} attempts: it is too "
                        "small for them"
                    )
                todo = cut
        counted = self.engine.counters(clear=True)
        # 3. The rollouts, and their promise.
        assembly.check_budget(np.asarray(budgets))
        after = self.engine.preemptions()
        if seed is not None:
            self._of_events = stream_of(seed)
        rollout, top = assembly.rollout(
            pad_token_id=self.pad_token_id,
            of_events=self._of_events,
            speculation=Speculation(
                rounds=sum(counts["steps"] for counts in counted),
                row_passes=sum(counts["row_passes"] for counts in counted),
                drafted=sum(counts["tokens"] for counts in counted),
                accepted=sum(counts["accepted"] for counts in counted),
            ),
        )
        return EngineDraw(
            rollout, top, rounds, repaired, None if after is None or preempted is None else after - preempted
        )

    def _check_length(self, longest: int, max_new_tokens: int) -> None:
        if longest + max_new_tokens > self.longest():
            needed = longest + max_new_tokens + slack(int(self.handshake["draft_length"]))
            raise EngineRefused(
                f"max_model_len of both models must be at least {needed} for prompts of {longest} and completions of "
                f"{max_new_tokens} tokens (and 3 draft_length + 1 more), got {self.handshake['max_model_len']}"
            )
