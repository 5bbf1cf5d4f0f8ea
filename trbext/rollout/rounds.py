"""The rounds of a speculative rollout: draft k tokens, verify them in one pass of the teacher, take back what fell.

State on the device, a row each: tokens written, status, and what neither cache holds yet. The host knows how far the
farthest row can be at most, which is all it needs to launch a round; it reads where rows really are, which have ended,
and what the rounds have cost where `next_host_read` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ops import sample, verify
from ..vocab import Alignment
from .decoding import ENDED, FAULT, RUNNING, host_read, next_host_read, raise_fault
from .draft_length import DraftLength, Stopwatch
from .hidden_states import HiddenStates
from .output import Rollout, Speculation
from .rollback import RollbackModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Rounds:
    """One rollout: the rows still in the batch, and what all rows have written.

    prompts, prompt_mask: [B, P], left padded; lengths: [B] tokens of each prompt, on the CPU. longest: an upper bound
    for k. The rest as in `speculative`.
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
        self.tokens = torch.zeros((batch, max_new_tokens + longest), dtype=torch.int64, device=device)
        self.values = torch.zeros((5, *self.tokens.shape), dtype=torch.float32, device=device)
        self.written_of_all = torch.zeros(batch, dtype=torch.int64, device=device)
        # Of the rows still in the batch: index, status, tokens written, and [n, u] what neither cache holds
        # yet: the whole prompt, which the first round feeds, and then the last token written.
        self.rows = torch.arange(batch, device=device)
        self.status = torch.full_like(self.rows, RUNNING)
        self.written = torch.zeros_like(self.rows)
        self.unfed = prompts
        self.begun = False  # whether the prompts have been fed
        per_row = epsilon.to(device, torch.float32) if isinstance(epsilon, Tensor) else None
        self.budget = torch.full((batch,), float(epsilon), device=device) if per_row is None else per_row
        self.last_position = lengths.to(device)[:, None] + max_new_tokens - 1
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)  # drafts that stood, drafts tested
        first, capacity = width - lengths.to(device)[:, None], width + min(max_new_tokens, 64) + longest
        self.padded = bool((lengths < width).any())
        self.caches = [RollbackModel(model, first, capacity) for model in self.models]
        self.student_logits = torch.empty(0, device=device)

    def run(self, draft_length: int | DraftLength, states: HiddenStates | None, pad_token_id: int) -> Rollout:
        auto = draft_length if isinstance(draft_length, DraftLength) else None
        if auto is not None:
            auto.begin(self.epsilon)
        stopwatch, timed = Stopwatch(self.device), []
        fewest = farthest = rounds = row_passes = stood = tested = 0  # as the host knows
        read_at = next_host_read(0)
        while True:
            left = self.limit - fewest
            k = min(draft_length, left) if isinstance(draft_length, int) else draft_length.choose(len(self.rows), left)
            marks = [stopwatch.mark()]
            drafts = self._draft(k, farthest)
            marks.append(stopwatch.mark())
            teacher_logits = self._extend(1, torch.cat([self.unfed, drafts[:, :-1]], 1), 0, farthest, logits=k)
            marks.append(stopwatch.mark())
            if states is not None:
                # Drafts past the limit share a column after the last one.
                place = (self.written[:, None] + torch.arange(k, device=self.device)).clamp(max=self.limit)
                states.keep(self.rows, place, min(farthest + k, self.limit + 1))
            self._verify(k, drafts, teacher_logits)
            if rounds > 0:  # the first one read the prompts
                timed.append((len(self.rows), k, marks))
            rounds, row_passes, farthest = rounds + 1, row_passes + len(self.rows), farthest + k
            if farthest < min(read_at, self.limit):
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
            causal=not self.begun and ahead == 0 and not self.padded,
            last_position=self.last_position,
        )

    def _draft(self, k: int, farthest: int) -> Tensor:
        """[n, k] tokens, each from the student given those before it; its logits stay in `student_logits` [k, n, V]."""
        tokens, ahead, drafts = self.unfed, 0, []
        positions = self._positions(k)
        for j in range(k):
            raw = self._extend(0, tokens, ahead, farthest, logits=1)[:, 0]
            ahead += tokens.shape[1]
            logits = self.alignment.canonical(raw, self.temperature, in_place=True)
            if j == 0 and (k > len(self.student_logits) or len(self.rows) != self.student_logits.shape[1]):
                self.student_logits = logits.new_empty((k, *logits.shape))
            self.student_logits[j] = logits
            uniform = self.uniforms[0, self.rows, positions[:, j]]
            token = sample(logits, logits, 0.0, uniform=uniform, temperature=self.temperature).token
            tokens = token.clamp(min=0)[:, None]  # a row at fault goes on with a harmless id: `verify` finds the fault
            drafts.append(tokens)
        return torch.cat(drafts, 1)

    def _verify(self, k: int, drafts: Tensor, teacher_logits: Tensor) -> None:
        """Writes what stands of the drafts, and moves each running row on by it."""
        n = len(self.rows)
        teacher = self.alignment.canonical(teacher_logits.flatten(0, 1), self.temperature, in_place=True)
        every = torch.arange(n * k, device=self.device)
        positions = self._positions(k)
        _, accept, draw = self.uniforms[:, self.rows[:, None], positions].flatten(1)
        verdict = verify(
            self.student_logits.flatten(0, 1),
            teacher,
            drafts.flatten(),
            torch.arange(n + 1, device=self.device) * k,
            self.budget,
            temperature=self.temperature,
            accept_uniform=accept,
            draw_uniform=draw,
            student_rows=every % k * n + every // k,  # drafted token by token, verified row by row
            width=k,
            log_probs=True,
        )
        self.begun = True
        # All k columns: what did not stand is written over by the next round, and cut off after the last one.
        where = self.rows[:, None], self.written[:, None] + torch.arange(k, device=self.device)
        self.tokens[where] = verdict.tokens
        student, teacher_log_prob, behavior = verdict.log_probs.unbind(-1)
        self.values[:, where[0], where[1]] = torch.stack(
            [behavior, student, teacher_log_prob, verdict.beta.view(n, k), verdict.kl.view(n, k)]
        )
        running = self.status == RUNNING
        emitted = verdict.emitted.long()
        moved = torch.where(running, emitted.clamp(min=0), 0)
        new = torch.arange(k, device=self.device) < moved[:, None]
        ended = (new & (verdict.tokens == self.alignment.stop)).any(1) | (self.written + moved >= self.limit)
        event = torch.where(emitted < 0, FAULT, ended * ENDED)
        self.status = torch.where(running, event, self.status)
        last = verdict.tokens.gather(1, (moved - 1).clamp(min=0)[:, None])[:, 0]
        self.unfed = torch.where(moved > 0, last, self.unfed[:, -1]).clamp(min=0)[:, None]
        self.written = (self.written + moved).clamp(max=self.limit)
        fell = verdict.accepted < k
        self.counts += torch.stack([(running * verdict.accepted).sum(), (running * (verdict.accepted + fell)).sum()])

    def _positions(self, k: int) -> Tensor:
        """[n, k] indices in the completion of the next tokens; drafts past the limit share the last one's uniforms."""
        return (self.written[:, None] + torch.arange(k, device=self.device)).clamp(max=self.limit - 1)

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
