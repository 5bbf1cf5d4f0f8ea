"""Puts the completions of an engine and the records of its tokens together, and cuts what does not follow mu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import EngineFailed, NonFiniteLogits
from ..rollout.events import accepted_drafts
from ..rollout.output import Rollout, Speculation
from .sampler.teacher_top import TeacherTop
from .transport import EngineCompletion, Records, RolloutRequest

# In the order that `Rollout.trim` takes them.
VALUES = ("log_prob", "student_log_prob", "teacher_log_prob", "beta", "kl")
# The bound that the operators promise for KL(mu || pi_S) (docs/operators.md).
RELATIVE_EXCESS, ABSOLUTE_EXCESS = 1e-4, 1e-7


class Assembly:
    """The rollouts of B prompts while they are drawn.

    Args:
        rows: B.
        longest: Tokens of a completion at most.
        top_k: Tokens of the teacher's distribution that come with each token; 0 is none.
    """

    def __init__(self, rows: int, longest: int, top_k: int) -> None:
        self._tokens = np.zeros((rows, longest), np.int64)
        self._values = np.full((len(VALUES), rows, longest), np.nan, np.float32)
        self._lengths = np.zeros(rows, np.int64)
        self._finished = np.zeros(rows, bool)
        self._top_ids = np.zeros((rows, longest, top_k), np.int32)
        self._top_log_prob = np.zeros((rows, longest, top_k), np.float32)
        self._rest_log_prob = np.zeros((rows, longest), np.float32)
        self._top_k = top_k

    def tokens_of(self, row: int) -> list[int]:
        """The tokens of a rollout so far."""
        return list(self._tokens[row, : self._lengths[row]].tolist())

    def length_of(self, row: int) -> int:
        """How many tokens a rollout has so far."""
        return int(self._lengths[row])

    def add(
        self, requests: Sequence[RolloutRequest], completions: Sequence[EngineCompletion], records: Sequence[Records]
    ) -> tuple[int, list[int]]:
        """Adds what the engine answered to `requests`, up to the first token that the teacher drew.

        The cut is decided before its token is drawn. What is drawn in its place, after the same prefix, therefore
        follows mu, and so does the whole rollout.

        Returns:
            How many tokens were added, and the rows that were cut, in the order of the requests.

        Raises:
            NonFiniteLogits: Logits of a rollout were at fault before its end.
            EngineFailed: A completion does not begin with the token that was held out, or tokens came without records.
        """
        # 1. Where to cut.
        cuts, faults = _first(records, "teacher"), _first(records, "fault")
        # 2. Take the tokens before it.
        base, kept = self._lengths.copy(), np.zeros_like(self._lengths)
        cut_rows, faulty = [], []
        for request, completion in zip(requests, completions, strict=True):
            row, tokens = request.key, completion.tokens
            if tokens[:1] != request.prompt[-1:]:
                raise EngineFailed(
                    f"a completion must begin with the token that was held out, {request.prompt[-1]}, got {tokens[:1]}"
                )
            end = min(cuts.get(row, len(tokens)), len(tokens))
            if end < len(tokens):
                cut_rows.append(row)
            else:
                self._finished[row] = completion.finished
            if faults.get(row, end) < end:  # a fault after the end is none of the completion
                faulty.append(row)
            kept[row] = end - 1
            self._tokens[row, base[row] : base[row] + kept[row]] = tokens[1:end]
        if faulty:
            raise NonFiniteLogits(
                f"logits of student or teacher were NaN, infinite or otherwise at fault in {len(faulty)} rollouts, the "
                f"first of prompt {min(faulty)}"
            )
        self._lengths += kept
        # 3. Take their records. The engine may have written more tokens than it delivered: past a stop token, say.
        for record in records:
            self._add_record(record, base, kept)
        known = ~np.isnan(self._values[0])
        missing = self._lengths - known.sum(1)
        if missing.any():
            raise EngineFailed(
                f"the engine delivered {missing.sum()} tokens without their log-probabilities: another client may have "
                "taken its records, or enabled the engine again"
            )
        return int(kept.sum()), cut_rows

    def _add_record(self, record: Records, base: NDArray[np.int64], kept: NDArray[np.int64]) -> None:
        row, index = record["key"], record["index"]
        chosen = np.flatnonzero((index >= 1) & (index <= kept[row]))
        row, place = row[chosen], (base[row] + index - 1)[chosen]
        same = self._tokens[row, place] == record["token"][chosen]
        row, place, chosen = row[same], place[same], chosen[same]
        for column, name in enumerate(VALUES):
            self._values[column, row, place] = record[name][chosen]
        if self._top_k and len(chosen):
            self._top_ids[row, place] = record["top_ids"][chosen]
            self._top_log_prob[row, place] = record["top_log_prob"][chosen]
            self._rest_log_prob[row, place] = record["rest_log_prob"][chosen]

    def check_budget(self, epsilon: NDArray[np.float64]) -> None:
        """Checks that no token spent more than its budget.

        Args:
            epsilon: [B] nats per token.

        Raises:
            EngineFailed: One did.
        """
        kl = np.nan_to_num(self._values[VALUES.index("kl")]).max(1, initial=0.0)
        over = kl > epsilon * (1 + RELATIVE_EXCESS) + ABSOLUTE_EXCESS
        if over.any():
            row = int(np.flatnonzero(over)[0])
            raise EngineFailed(
                f"KL(mu || pi_S) must not exceed the budget of {epsilon[row]} nats, got {kl[row]} in the rollout of "
                f"prompt {row}"
            )

    def rollout(
        self, *, pad_token_id: int, speculation: Speculation, of_events: torch.Generator
    ) -> tuple[Rollout, TeacherTop | None]:
        """The rollouts, once they are whole, on the CPU.

        The records do not say which token was a draft. Labels drawn afterwards have the same law (`rollout/events.py`),
        also for the token after all drafts, which is drawn from mu at once.

        Args:
            pad_token_id: Follows the end of a row.
            speculation: The counts of the engine.
            of_events: Gives the random numbers of the labels.
        """
        longest = int(self._lengths.max())
        values = _tensor(self._values)
        uniforms = torch.rand(self._tokens.shape, dtype=torch.float64, generator=of_events)
        rollout = Rollout.trim(
            _tensor(self._tokens),
            values,
            _tensor(self._lengths),
            _tensor(self._finished),
            pad_token_id=pad_token_id,
            teacher=True,
            speculation=speculation,
            accepted=accepted_drafts(uniforms, values[0], values[1]),
        )
        if not self._top_k:
            return rollout, None
        parts = (self._top_ids, self._top_log_prob, self._rest_log_prob)
        return rollout, TeacherTop(*(_tensor(part[:, :longest]) for part in parts))


def _first(records: Sequence[Records], kind: str) -> dict[int, int]:
    """Returns the first place of a kind ("teacher" or "fault") in the output of each request that has one."""
    first: dict[int, int] = {}
    for record in records:
        for key, index in zip(record[f"{kind}_key"].tolist(), record[f"{kind}_index"].tolist(), strict=True):
            first[key] = min(index, first.get(key, index))
    return first


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
