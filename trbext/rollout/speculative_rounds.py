"""Runs the rounds of a speculative rollout: draft tokens, verify them in one pass of the teacher, drop rejected ones.

A round of draft length k tests k + 1 tokens: k drafts from which the student continues, and one more.

The state of each row is on the device: its tokens, its status, and what neither KV cache holds yet. The host knows an
upper bound for the position of the farthest row, which is all it needs to launch a round. It reads the positions of the
rows, which rows have ended, and what the rounds have cost, at the tokens that `next_host_read` gives and after rounds
that were made to measure.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..limits import in_float32
from ..models.next_token import TopKTeacher, is_transformers
from ..ops import sample, verify
from ..top_k import TopK
from .caches import rollback_caches
from .decoding import Decoding
from .draft_length import DraftLength
from .hidden_states import HiddenStates
from .host_reads import ENDED, FAULT, RUNNING, host_read, next_host_read, raise_fault
from .known_top import KnownTop
from .output import Rollout, Speculation
from .stopwatch import Stopwatch


class Rounds:
    """One rollout by speculation: the rows still in the batch, and what all rows have written.

    Args:
        decoding: The checked arguments, of a policy with a KL budget.
        longest: An upper bound for the draft length.
    """

    def __init__(self, decoding: Decoding, *, longest: int) -> None:
        # 1. The arguments, and the random numbers of the draft, of its acceptance and of the token in its place.
        self.decoding, self.limit, self.device = decoding, decoding.max_new_tokens, decoding.device
        self.alignment, self.temperature = decoding.alignment, decoding.temperature
        longest = min(longest, self.limit - 1)  # a round drafts no more than a row may still write
        batch, self.width = decoding.prompts.shape
        device, lengths = self.device, decoding.lengths.to(decoding.device)
        self.uniforms = decoding.uniforms(3, batch, self.limit, rows=1)
        # 2. What all rows have written. A round may write past the limit; the content of a row ends at the token at
        # which the next round began.
        self.tokens = torch.zeros((batch, self.limit + longest + 1), dtype=torch.int64, device=device)
        self.values = torch.zeros((5, *self.tokens.shape), dtype=torch.float32, device=device)
        self.accepted = torch.zeros(self.tokens.shape, dtype=torch.bool, device=device)
        self.written_of_all = torch.zeros(batch, dtype=torch.int64, device=device)
        # 3. Of the rows still in the batch: index, status, tokens written, and [n, u] the tokens that are in neither KV
        # cache yet: in the first round the whole prompt, later the last token written.
        self.rows = torch.arange(batch, device=device)
        self.status = torch.full_like(self.rows, RUNNING)
        self.written = torch.zeros_like(self.rows)
        self.unfed = decoding.prompts
        self.level = True  # whether all running rows are known to have written equally many tokens
        budget = decoding.budget
        assert budget is not None
        per_row = budget if isinstance(budget, Tensor) else torch.full((batch,), in_float32(budget))
        self.budget = per_row.to(device, torch.float32)
        self.last_position = lengths[:, None] + self.limit - 1
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)  # drafts accepted, drafts tested
        # 4. Make the KV caches of both models.
        first, capacity = self.width - lengths[:, None], self.width + min(self.limit, 64) + longest + 1
        self.padded = bool((decoding.lengths < self.width).any())
        self.caches = rollback_caches(decoding, first, capacity)
        self.top = KnownTop(decoding, self.tokens.shape[1]) if isinstance(decoding.teacher, TopKTeacher) else None
        self.student_logits = torch.empty(0, device=device)
        self.stays_below_limit = any(
            not is_transformers(model) and not isinstance(model, TopKTeacher) for _, model in decoding.named_models
        )

    def run(self, draft_length: int | DraftLength) -> Rollout:
        """Decodes all rows to their ends, with a fixed number of drafts per round or one that is measured."""
        auto, fixed = (None, draft_length) if isinstance(draft_length, int) else (draft_length, 0)
        if auto is not None:
            assert self.decoding.budget is not None
            auto.begin(self.decoding.budget)
        with self.decoding.running() as states:
            speculation = self._run(auto, fixed, states)
        self.written_of_all[self.rows] = self.written
        return self._rollout(states, speculation)

    def _run(self, auto: DraftLength | None, fixed: int, states: HiddenStates | None) -> Speculation:
        stopwatch = Stopwatch(self.device)
        timed: list[tuple[int, int, list[Any]]] = []  # rows, drafts and marks of the rounds since the last host read
        fewest = farthest = rounds = row_passes = accepted = tested = 0  # as the host knows
        read_at = next_host_read(0)
        while True:
            # 1. Choose the number of drafts k. A model of the user may have nothing to say past the limit of a row.
            n, left = len(self.rows), self.limit - (farthest if self.stays_below_limit else fewest)
            k = auto.choose(n, left) if auto is not None else min(fixed, left - 1)
            places = self.written[:, None] + torch.arange(k + 1, device=self.device)  # in the completion
            # 2. Draft, let the teacher score the drafts, and verify them.
            marks = [stopwatch.mark()]
            self.level = fewest == farthest
            drafts = self._draft(places, farthest)
            marks.append(stopwatch.mark())
            teacher = self._score(places, drafts, farthest)
            marks.append(stopwatch.mark())
            if states is not None:
                # Drafts past the limit share a column after the last one.
                states.keep(self.rows, places.clamp(max=self.limit), min(farthest + k + 1, self.limit + 1))
            self._verify(places, drafts, teacher)
            # 3. Count, and start the next round unless a host read is due.
            if rounds > 0:  # the first round also reads the prompts
                timed.append((n, k, marks))
            rounds, row_passes = rounds + 1, row_passes + n
            fewest, farthest = fewest + 1, farthest + k + 1  # a round writes at least one token
            waits = self.top is not None  # a server is sent the tokens, so the host knows all of them anyway
            if farthest < min(read_at, self.limit) and not waits and not (auto is not None and auto.measuring(n)):
                continue
            # 4. Read the state of the rows, and what the rounds have cost.
            host = host_read(torch.cat([self.status, self.written, self.counts]))
            state, written = host[: len(self.rows)], host[len(self.rows) : -2]
            prompts = (self.decoding.prompts, self.decoding.prompt_mask)
            raise_fault(state, self.rows, prompts, self.tokens, self.decoding.named_models)
            now_accepted, now_tested = host[-2:].tolist()
            if auto is not None:
                auto.saw_drafts(now_accepted - accepted, now_tested - tested)
                for size, length, (begin, drafted, passed) in timed:
                    auto.saw_costs(size, length, stopwatch.seconds(begin, drafted), stopwatch.seconds(drafted, passed))
            accepted, tested = now_accepted, now_tested
            timed.clear()
            # 5. Stop if all rows have ended, and drop the rows that have.
            running = (state == RUNNING).nonzero()[:, 0]
            if len(running) == 0:
                return Speculation(rounds, row_passes, tested, accepted)
            if len(running) < len(state):
                self._keep(running.to(self.device))
            fewest, farthest = int(written[running].min()), int(written[running].max())
            read_at = next_host_read(farthest)

    def _extend(self, model: int, tokens: Tensor, ahead: int, farthest: int, *, logits: int) -> Tensor:
        """Feeds `tokens` [n, q] to a model, after the first `ahead` tokens that it is fed in this round.

        Returns:
            The logits [n, logits, V] of the last positions.
        """
        fed = self.unfed.shape[1]
        begin = self.width - fed + ahead
        columns = begin + self.written[:, None] + torch.arange(tokens.shape[1], device=self.device)
        found: Tensor = self.caches[model].extend(
            tokens,
            columns,
            begin + farthest + tokens.shape[1],
            logits=logits,
            level=self.level,
            padded=self.padded,
            last_position=self.last_position,
        )
        return found

    def _draft(self, places: Tensor, farthest: int) -> Tensor:
        """Drafts tokens [n, q] for `places` [n, q], each from the student given those before it.

        The student's logits are left in `student_logits` [q, n, V].
        """
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
            tokens = token.clamp(min=0)[:, None]  # a row at fault continues with a harmless id: `verify` finds it
            drafts.append(tokens)
        return torch.cat(drafts, 1)

    def _score(self, places: Tensor, drafts: Tensor, farthest: int) -> Tensor | TopK:
        """Returns what the teacher says at each of `drafts` [n, q]: n q rows of logits, or of its top k tokens."""
        if self.top is not None:
            return self.top.ask(self.rows, self.tokens, self.written, places, drafts)
        fed = torch.cat([self.unfed, drafts[:, :-1]], 1)
        logits = self._extend(1, fed, 0, farthest, logits=drafts.shape[1])
        return self.alignment.canonical(logits.flatten(0, 1), self.temperature, in_place=True)

    def _verify(self, places: Tensor, drafts: Tensor, teacher: Tensor | TopK) -> None:
        """Writes the accepted drafts of [n, q] and the token drawn after them, and advances each running row."""
        # 1. Verify: which drafts are accepted, and which token replaces the first rejected one.
        n, q = drafts.shape
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
        # 2. Write all q columns: what was rejected is written over by the next round, or cut off after the last one.
        self.tokens[self.rows[:, None], places] = verdict.tokens
        student, teacher_log_prob, behavior = verdict.log_probs.unbind(-1)
        self.values[:, self.rows[:, None], places] = torch.stack(
            [behavior, student, teacher_log_prob, verdict.beta.view(n, q), verdict.kl.view(n, q)]
        )
        accepted = verdict.accepted.long()
        self.accepted[self.rows[:, None], places] = torch.arange(q, device=self.device) < accepted[:, None]
        # 3. Advance the running rows, and note which have ended or are at fault. A fault after the end of a completion
        #    is none of its row: lockstep would not have asked.
        running = self.status == RUNNING
        fault = verdict.emitted < 0
        moved = torch.where(running, torch.where(fault, accepted, verdict.emitted.long()), 0)
        new = torch.arange(q, device=self.device) < moved[:, None]
        stops = new & (verdict.tokens == self.alignment.stop)
        left = self.limit - self.written
        ended = stops.any(1) | (moved >= left)
        event = torch.where(ended, ENDED, fault * FAULT)
        self.status = torch.where(running, event, self.status)
        last = verdict.tokens.gather(1, (moved - 1).clamp(min=0)[:, None])[:, 0]
        self.unfed = torch.where(moved > 0, last, self.unfed[:, -1]).clamp(min=0)[:, None]
        self.written = (self.written + moved).clamp(max=self.limit)
        # 4. Count the drafts that were tested: those accepted, and the first rejected one of a row. Drafts past the end
        #    of a completion do not count.
        ends = torch.where(stops.any(1), stops.int().argmax(1) + 1, left).clamp(max=left)
        counted = torch.minimum(torch.stack([accepted, accepted + (accepted < q)]), ends)
        self.counts += (running * counted).sum(1)

    def _within(self, places: Tensor) -> Tensor:
        """Limits `places` to those of the completion, the last of which lends drafts past the limit its uniforms."""
        return places.clamp(max=self.limit - 1)

    def _keep(self, kept: Tensor) -> None:
        """Drops all rows but `kept` [m]."""
        self.written_of_all[self.rows] = self.written
        for name in ("rows", "status", "written", "unfed", "budget", "last_position"):
            setattr(self, name, getattr(self, name)[kept])
        for cache in self.caches:
            cache.keep_rows(kept)

    def _rollout(self, states: HiddenStates | None, speculation: Speculation) -> Rollout:
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
            pad_token_id=self.decoding.pad_token_id,
            teacher=True,
            teacher_states=states,
            teacher_top=None if self.top is None else self.top.told,
            speculation=speculation,
            accepted=self.accepted,
        )
