"""The rounds of a speculative rollout: draft tokens, verify them in one pass of the teacher, take back what fell.

A round of draft length k tests k + 1 tokens: k drafts that the student goes on from, and one more.

State on the device, a row each: tokens written, status, and what neither cache holds yet. The host knows how far the
farthest row can be at most, which is all it needs to launch a round; it reads where rows really are, which have ended,
and what the rounds have cost where `next_host_read` says, and after rounds that were made to measure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models.rollback_model import RollbackModel
from ..ops import sample, verify
from ..vocab import Alignment
from .draft_length import DraftLength
from .hidden_states import HiddenStates
from .host_reads import ENDED, FAULT, RUNNING, host_read, next_host_read, raise_fault
from .output import Rollout, Speculation
from .stopwatch import Stopwatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Rounds:
    """One rollout: the rows still in the batch, and what all rows have written.

    prompts, prompt_mask: [B, P], left padded; lengths: [B] tokens of each prompt, on the CPU. longest: an upper bound
    for the draft length. The rest as in `speculative`.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        prompts: Tensor,
        prompt_mask: Tensor,
        lengths: Tensor,
        *,
        epsilon: float | Tensor,
        max_new_tokens: int,
        longest: int,
        alignment: Alignment,
        temperature: float,
        generator: torch.Generator | None,
    ) -> None:
        self.models, self.prompts, self.limit = (student, teacher), (prompts, prompt_mask), max_new_tokens
        self.alignment, self.temperature, self.epsilon = alignment, temperature, epsilon
        (batch, width), device = prompts.shape, prompts.device
        self.width, self.device = width, device
        source = device if generator is None else generator.device
        uniforms = torch.rand((3, batch, max_new_tokens), dtype=torch.float64, generator=generator, device=source)
        self.uniforms = uniforms.to(device)
        # A round may write past the limit; a row's own content ends where the next round began.
        self.tokens = torch.zeros((batch, max_new_tokens + longest + 1), dtype=torch.int64, device=device)
        self.values = torch.zeros((5, *self.tokens.shape), dtype=torch.float32, device=device)
        self.written_of_all = torch.zeros(batch, dtype=torch.int64, device=device)
        # Of the rows still in the batch: index, status, tokens written, and [n, u] what neither cache holds
        # yet: the whole prompt, which the first round feeds, and then the last token written.
        self.rows = torch.arange(batch, device=device)
        self.status = torch.full_like(self.rows, RUNNING)
        self.written = torch.zeros_like(self.rows)
        self.unfed = prompts
        self.level = True  # whether all rows that run are known to have written equally much
        per_row = epsilon.to(device, torch.float32) if isinstance(epsilon, Tensor) else None
        self.budget = torch.full((batch,), float(epsilon), device=device) if per_row is None else per_row
        self.last_position = lengths.to(device)[:, None] + max_new_tokens - 1
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)  # drafts that stood, drafts tested
        first, capacity = width - lengths.to(device)[:, None], width + min(max_new_tokens, 64) + longest + 1
        self.padded = bool((lengths < width).any())
        self.caches = [RollbackModel(model, first, capacity) for model in self.models]
        self.student_logits = torch.empty(0, device=device)

    def run(self, draft_length: int | DraftLength, states: HiddenStates | None, pad_token_id: int) -> Rollout:
        auto, fixed = (None, draft_length) if isinstance(draft_length, int) else (draft_length, 0)
        if auto is not None:
            auto.begin(self.epsilon)
        stopwatch, timed = Stopwatch(self.device), []
        fewest = farthest = rounds = row_passes = stood = tested = 0  # as the host knows
        read_at = next_host_read(0)
        while True:
            n, left = len(self.rows), self.limit - fewest
            k = auto.choose(n, left) if auto is not None else min(fixed, left - 1)
            places = self.written[:, None] + torch.arange(k + 1, device=self.device)  # in the completion
            marks = [stopwatch.mark()]
            self.level = fewest == farthest
            drafts = self._draft(places, farthest)
            marks.append(stopwatch.mark())
            teacher_logits = self._extend(1, torch.cat([self.unfed, drafts[:, :-1]], 1), 0, farthest, logits=k + 1)
            marks.append(stopwatch.mark())
            if states is not None:
                # Drafts past the limit share a column after the last one.
                states.keep(self.rows, places.clamp(max=self.limit), min(farthest + k + 1, self.limit + 1))
            self._verify(places, drafts, teacher_logits)
            if rounds > 0:  # the first one read the prompts
                timed.append((n, k, marks))
            rounds, row_passes = rounds + 1, row_passes + n
            fewest, farthest = fewest + 1, farthest + k + 1  # a round writes a token at least
            if farthest < min(read_at, self.limit) and not (auto is not None and auto.measuring(n)):
                continue
            host = host_read(torch.cat([self.status, self.written, self.counts]))
            state, written = host[: len(self.rows)], host[len(self.rows) : -2]
            raise_fault(state, self.rows, self.prompts, self.tokens, list(self.models))
            newly_stood, newly_tested = host[-2:].tolist()
            if auto is not None:
                auto.saw_drafts(newly_stood - stood, newly_tested - tested)
                for size, length, (begin, drafted, passed) in timed:
                    auto.saw_costs(size, length, stopwatch.seconds(begin, drafted), stopwatch.seconds(drafted, passed))
            stood, tested = newly_stood, newly_tested
            timed.clear()
            running = (state == RUNNING).nonzero()[:, 0]
            if len(running) == 0:
                break
            if len(running) < len(state):
                self._keep(running.to(self.device))
            fewest, farthest = int(written[running].min()), int(written[running].max())
            read_at = next_host_read(farthest)
        self.written_of_all[self.rows] = self.written
        return self._rollout(pad_token_id, states, Speculation(rounds, row_passes, tested, stood))

    def _extend(self, model: int, tokens: Tensor, ahead: int, farthest: int, *, logits: int) -> Tensor:
        """Feed `tokens` [n, q], which follow the first `ahead` tokens of what is fed in this round."""
        fed = self.unfed.shape[1]
        begin = self.width - fed + ahead
        columns = begin + self.written[:, None] + torch.arange(tokens.shape[1], device=self.device)
        return self.caches[model].extend(
            tokens,
            columns,
            begin + farthest + tokens.shape[1],
            logits=logits,
            level=self.level,
            padded=self.padded,
            last_position=self.last_position,
        )

    def _draft(self, places: Tensor, farthest: int) -> Tensor:
        """Tokens for `places` [n, q], each from the student given those before it; its logits stay in `student_logits`
        [q, n, V]."""
        tokens, ahead, drafts = self.unfed, 0, []
        q = places.shape[1]
        uniforms = self.uniforms[0, self.rows[:, None], self._within(places)]
        for j in range(q):
            raw = self._extend(0, tokens, ahead, farthest, logits=1)[:, 0]
            ahead += tokens.shape[1]
            logits = self.alignment.canonical(raw, self.temperature, in_place=True)
            if j == 0 and (q > len(self.student_logits) or len(self.rows) != self.student_logits.shape[1]):
                self.student_logits = logits.new_empty((q, *logits.shape))
            self.student_logits[j] = logits
            token = sample(logits, logits, 0.0, uniform=uniforms[:, j], temperature=self.temperature).token
            tokens = token.clamp(min=0)[:, None]  # a row at fault goes on with a harmless id: `verify` finds the fault
            drafts.append(tokens)
        return torch.cat(drafts, 1)

    def _verify(self, places: Tensor, drafts: Tensor, teacher_logits: Tensor) -> None:
        """Writes what stands of the drafts [n, q], and moves each running row on by it."""
        n, q = drafts.shape
        teacher = self.alignment.canonical(teacher_logits.flatten(0, 1), self.temperature, in_place=True)
        every = torch.arange(n * q, device=self.device)
        _, accept, draw = self.uniforms[:, self.rows[:, None], self._within(places)].flatten(1)
        verdict = verify(
            self.student_logits.flatten(0, 1),
            teacher,
            drafts.flatten(),
            torch.arange(n + 1, device=self.device) * q,
            self.budget,
            temperature=self.temperature,
            accept_uniform=accept,
            draw_uniform=draw,
            student_rows=every % q * n + every // q,  # drafted token by token, verified row by row
            width=q,
            log_probs=True,
        )
        # All q columns: what did not stand is written over by the next round, and cut off after the last one.
        self.tokens[self.rows[:, None], places] = verdict.tokens
        student, teacher_log_prob, behavior = verdict.log_probs.unbind(-1)
        self.values[:, self.rows[:, None], places] = torch.stack(
            [behavior, student, teacher_log_prob, verdict.beta.view(n, q), verdict.kl.view(n, q)]
        )
        running = self.status == RUNNING
        emitted = verdict.emitted.long()
        moved = torch.where(running, emitted.clamp(min=0), 0)
        new = torch.arange(q, device=self.device) < moved[:, None]
        ended = (new & (verdict.tokens == self.alignment.stop)).any(1) | (self.written + moved >= self.limit)
        event = torch.where(emitted < 0, FAULT, ended * ENDED)
        self.status = torch.where(running, event, self.status)
        last = verdict.tokens.gather(1, (moved - 1).clamp(min=0)[:, None])[:, 0]
        self.unfed = torch.where(moved > 0, last, self.unfed[:, -1]).clamp(min=0)[:, None]
        self.written = (self.written + moved).clamp(max=self.limit)
        fell = verdict.accepted < q
        self.counts += torch.stack([(running * verdict.accepted).sum(), (running * (verdict.accepted + fell)).sum()])

    def _within(self, places: Tensor) -> Tensor:
        """`places` up to the last of the completion, whose uniforms serve what is drafted past the limit."""
        return places.clamp(max=self.limit - 1)

    def _keep(self, kept: Tensor) -> None:
        """Drop all rows but `kept`."""
        self.written_of_all[self.rows] = self.written
        for name in ("rows", "status", "written", "unfed", "budget", "last_position"):
            setattr(self, name, getattr(self, name)[kept])
        for cache in self.caches:
            cache.keep_rows(kept)

    def _rollout(self, pad_token_id: int, states: HiddenStates | None, speculation: Speculation) -> Rollout:
        width = self.tokens.shape[1]
        written = self.written_of_all
        inside = torch.arange(width, device=self.device) < written[:, None]
        stopped = inside & (self.tokens == self.alignment.stop)
        finished = stopped.any(1)
        completed = torch.where(finished, stopped.int().argmax(1) + 1, written)
        return Rollout.trim(
            self.tokens,
            self.values,
            completed,
            finished,
            pad_token_id=pad_token_id,
            teacher=True,
            teacher_states=states,
            speculation=speculation,
        )
