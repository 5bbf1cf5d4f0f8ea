"""Asks a top-k teacher about the drafts of a rollout, and keeps what it says for the loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.next_token import TopKTeacher, checked_top
from ..top_k import TopK
from .decoding import Decoding


class KnownTop:
    """What a top-k teacher has said at each token of a rollout.

    Args:
        decoding: Its teacher is a `TopKTeacher`.
        width: Tokens that a row may write, the last drafts included.
    """

    def __init__(self, decoding: Decoding, width: int) -> None:
        teacher = decoding.teacher
        assert isinstance(teacher, TopKTeacher)
        self._teacher, self._alignment, self._limit = teacher, decoding.alignment, decoding.max_new_tokens
        masks = decoding.prompt_mask.bool().cpu()
        ids = decoding.prompts.cpu()
        self._prompts: list[list[int]] = [row[mask].tolist() for row, mask in zip(ids, masks, strict=True)]
        self._width = width
        self.told: TopK | None = None  # [B, width, k]; None until the first round

    def ask(self, rows: Tensor, tokens: Tensor, written: Tensor, places: Tensor, drafts: Tensor) -> TopK:
        """Asks about the drafts of a round, in one request or a few.

        Args:
            rows: [n] int64, which rows of the batch these are.
            tokens: [B, width] int64, what all rows have written.
            written: [n] int64, tokens of each row that count.
            places: [n, q] int64, of the drafts in the completion.
            drafts: [n, q] int64.

        Returns:
            [n q, k] of each draft, given those before it; no tokens (-1) at drafts that cannot count. k is the most
            that was told in any round so far.
        """
        # 1. Drafts after a stop token or past the limit can be no part of a completion: nobody is asked about them.
        n, q = drafts.shape
        stop = self._alignment.stop
        index, begun = rows.tolist(), written.tolist()
        texts, new = tokens[rows].tolist(), drafts.tolist()
        prefixes: list[list[int]] = []
        asked: list[int] = []  # of the n q drafts
        for row in range(n):
            prefix = [*self._prompts[index[row]], *texts[row][: begun[row]]]
            for place in range(min(q, self._limit - begun[row])):
                prefixes.append([*prefix, *new[row][:place]])
                asked.append(row * q + place)
                if new[row][place] == stop:
                    break
        # 2. Ask, and lay the answers out.
        said = self._teacher.next_tokens(prefixes, self._alignment)
        answer = checked_top(said, self._teacher, len(prefixes), self._alignment.width)
        told, have = answer.ids.shape[1], 0 if self.told is None else self.told.ids.shape[2]
        k = max(told, have)
        ids = torch.full((n * q, k), -1, dtype=torch.int64)
        log_probs = torch.full((n * q, k), -torch.inf)
        ids[asked, :told], log_probs[asked, :told] = answer
        found = TopK(ids.to(drafts.device), log_probs.to(drafts.device))
        # 3. Keep them: what is said of a rejected draft's place is the same for the token that replaces it.
        if self.told is None:
            empty = torch.empty((len(tokens), self._width, 0), device=drafts.device)
            self.told = TopK(empty.long(), empty)
        if told > have:
            self.told = TopK(
                F.pad(self.told.ids, (0, told - have), value=-1),
                F.pad(self.told.log_probs, (0, told - have), value=-torch.inf),
            )
        for kept, value in zip(self.told, found, strict=True):
            kept[rows[:, None], places] = value.view(n, q, k)
        return found
