"""Defines what a student or a teacher must do if it is not a Hugging Face model, and adapts it to the decoders.

A rollout asks four things of a model: read the prompts (prefill), read further tokens (advance), forget tokens that
were rejected (take back), and drop rows that have ended (keep rows). `NextTokenModel` and `Prefixes` are these, and a
function from token ids to logits does the same without a cache. Only logits are asked for, so a model may run anywhere:
in another framework, behind a queue, or quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..limits import LARGEST_EXCESS_OF_MASS
from ..top_k import TopK
from .cached_model import has_config, unwrap

if TYPE_CHECKING:
    from ..vocab import Alignment

# input_ids [B, S] int64 -> logits [B, S, V]. Padding follows the tokens of a row, so a causal model needs no mask.
LogitsFunction: TypeAlias = Callable[[Tensor], Tensor]


class Prefixes(Protocol):
    """A batch of prefixes that a model has read, with whatever it keeps of them."""

    def advance(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Takes back what follows the first tokens of each row, and reads more tokens there.

        Args:
            tokens: [n, q] int64.
            lengths: [n] int64, how many tokens of each row stay, prompt included and padding not.

        Returns:
            The logits [n, q, V] after each of `tokens`, any float dtype, on the device of `tokens`.
        """
        ...

    def keep_rows(self, rows: Tensor) -> None:
        """Drops all rows but `rows` [m] int64."""
        ...


@runtime_checkable
class NextTokenModel(Protocol):
    """Anything that yields next-token logits, as a student or a teacher of rollouts."""

    def prefill(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Prefixes]:
        """Reads a batch of prompts.

        Args:
            input_ids: [B, P] int64, left padded.
            attention_mask: [B, P] int64, 1 for tokens and 0 for padding.

        Returns:
            The logits [B, V] after the prompts, any float dtype, on the device of `input_ids`; and the prefixes.
        """
        ...


@runtime_checkable
class TopKTeacher(Protocol):
    """A teacher that tells the log-probs of its k most probable next tokens only, such as a server."""

    def next_tokens(self, prefixes: Sequence[Sequence[int]], alignment: Alignment) -> TopK:
        """Returns what is known of the next token after each of n prefixes.

        Args:
            prefixes: n lists of token ids, without padding.
            alignment: The vocabulary that both models share.

        Returns:
            ids and log_probs [n, k], the latter float32 or float64, on the CPU, over the common vocabulary at
            temperature 1. k may differ between the calls of a rollout. What `trbext.TopK` calls a fault is refused.
        """
        ...

    def score(self, sequences: Sequence[Sequence[int]], starts: Sequence[int], alignment: Alignment) -> TopK:
        """Returns what is known of each token of n completed sequences from a start on, given the tokens before it.

        Args:
            sequences: n lists of token ids, without padding.
            starts: Of each sequence, its first token that is scored, at least 1.
            alignment: The vocabulary that both models share.

        Returns:
            ids and log_probs [sum of (len(sequence) - start), k], sequence by sequence, as of `next_tokens`.
        """
        ...


@runtime_checkable
class TokenScorer(Protocol):
    """A top-k teacher that also tells the log-probs of tokens that it is asked about."""

    def log_probs_of(self, prefixes: Sequence[Sequence[int]], ids: Tensor, alignment: Alignment) -> Tensor:
        """Returns the log-probs of given next tokens after each of n prefixes.

        Args:
            prefixes: n lists of token ids, without padding.
            ids: [n, k] int64, on the CPU, of the common vocabulary.
            alignment: The vocabulary that both models share.

        Returns:
            [n, k] float32 or float64, nats, at temperature 1. Tokens that the student lacks keep their mass: it is not
            known. Probabilities of different tokens that add up to more than 1, or are NaN, are refused.
        """
        ...


# Half precision rounds probabilities that add up to 1 to more than LARGEST_EXCESS_OF_MASS above it.
_LOG_PROBS = (torch.float32, torch.float64)


def checked_top(answer: Any, teacher: TopKTeacher, rows: int, width: int) -> TopK:
    """Checks what a top-k teacher has answered, whose faults the operators cannot name.

    Args:
        answer: What it returned.
        teacher: The error names it.
        rows: The prefixes that it was asked about.
        width: Tokens of the common vocabulary.

    Returns:
        The answer, as int64 and float32.

    Raises:
        ValueError: It is no `TopK` of these prefixes.
    """
    name, parts = type(teacher).__name__, tuple(answer) if isinstance(answer, Sequence) else (answer,)
    tensors = [part for part in parts if isinstance(part, Tensor) and part.dim() == 2 and len(part) == rows]
    shaped = len(parts) == len(tensors) == 2 and tensors[0].shape == tensors[1].shape
    if not shaped or tensors[0].is_floating_point() or tensors[1].dtype not in _LOG_PROBS:
        got = ", ".join(f"{p.dtype} {list(p.shape)}" if isinstance(p, Tensor) else type(p).__name__ for p in parts)
        raise ValueError(
            f"the teacher {name} must return whole ids and log_probs in float32 or float64, each a tensor [{rows}, k], "
            f"got {got}"
        )
    ids, log_probs = tensors[0].long(), tensors[1].float()
    in_order = ids.sort(-1).values
    twice = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
    mass = log_probs.double().exp().masked_fill(ids < 0, 0.0).sum(-1)
    for wrong, rule, shown in (
        (((ids < -1) | (ids >= width)).any(-1), f"ids in [0, {width}), -1 for none", ids),
        (twice.any(-1), "each id once per row", ids),
        (~(mass <= 1 + LARGEST_EXCESS_OF_MASS), "log-probs whose probabilities add up to at most 1", mass),
        ((mass == 0) & ((ids >= 0).sum(-1) == width), f"a probability above 0 if it lists all {width} tokens", mass),
    ):
        if wrong.any():
            row = int(wrong.int().argmax())
            raise ValueError(f"the teacher {name} must return {rule}, got {shown[row].tolist()} in row {row}")
    return TopK(ids, log_probs)


def checked_log_probs(answer: Any, teacher: TokenScorer, ids: Tensor) -> Tensor:
    """Checks what a teacher has answered about given tokens, of which one may be asked about twice.

    Args:
        answer: What `log_probs_of` returned.
        teacher: The error names it.
        ids: [n, k] int64, the tokens.

    Returns:
        The answer [n, k], float32.

    Raises:
        ValueError: It holds no log-probs of these tokens.
    """
    name = type(teacher).__name__
    if not isinstance(answer, Tensor) or answer.shape != ids.shape or answer.dtype not in _LOG_PROBS:
        got = f"{answer.dtype} {list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(
            f"the teacher {name} must return log-probs, a tensor {list(ids.shape)} in float32 or float64, got {got}"
        )
    log_probs = answer.to(ids.device, torch.float32)
    in_order, places = ids.sort(-1)
    again = F.pad(in_order[:, 1:] == in_order[:, :-1], (1, 0))
    probabilities = log_probs.double().exp()
    mass = probabilities.gather(-1, places).masked_fill(again, 0.0).sum(-1)
    wrong = ~((probabilities <= 1 + LARGEST_EXCESS_OF_MASS).all(-1) & (mass <= 1 + LARGEST_EXCESS_OF_MASS))
    if wrong.any():
        row = int(wrong.int().argmax())
        raise ValueError(
            f"the teacher {name} must return log-probs whose probabilities add up to at most 1, got "
            f"{log_probs[row].tolist()} in row {row}"
        )
    return log_probs


def is_transformers(model: Any) -> bool:
    """Returns whether `model` is a transformers model, which may be inside DDP, DeepSpeed, PEFT or
    torch.compile."""
    return has_config(unwrap(model)) and not isinstance(model, (NextTokenModel, TopKTeacher))


def as_next_token_model(model: Any, name: str) -> NextTokenModel:
    """Returns `model` if it is a `NextTokenModel`, and a function from ids to logits as one.

    Args:
        model: Not a transformers model.
        name: What an error calls it, "student" or "teacher".

    Raises:
        TypeError: It is neither.
    """
    if isinstance(model, NextTokenModel):
        return model
    if not callable(model):
        raise TypeError(
            f"the {name} must be a transformers causal LM, a trbext.NextTokenModel or a function from ids [B, S] to "
            f"logits [B, S, V], got {type(model).__name__}"
        )
    return FunctionModel(model)


class FunctionModel:
    """A function from ids to logits as a `NextTokenModel`. It scores whole prefixes anew at each call.

    Args:
        function: Takes ids [B, S] int64, in which padding (0) follows the tokens of each row, and returns logits
            [B, S, V]. The logits after a token may depend on the tokens up to it only.
    """

    def __init__(self, function: LogitsFunction) -> None:
        self.function = function

    def prefill(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Prefixes]:
        first = attention_mask.argmax(1)[:, None]
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        moved = input_ids.gather(1, (first + columns).clamp(max=input_ids.shape[1] - 1))
        lengths = attention_mask.sum(1)
        prefixes = _WholePrefixes(self.function, moved.masked_fill(columns >= lengths[:, None], 0))
        return prefixes.score((lengths - 1)[:, None])[:, 0], prefixes


class _WholePrefixes:
    def __init__(self, function: LogitsFunction, ids: Tensor) -> None:
        self.function, self.ids = function, ids

    def score(self, columns: Tensor) -> Tensor:
        """Returns the logits [n, q, V] after the tokens at `columns` [n, q]."""
        logits = self.function(self.ids)
        if not isinstance(logits, Tensor):
            raise TypeError(
                "a function from ids to logits must return a tensor [B, S, V] (of a transformers model: "
                f"model(ids).logits), got {type(logits).__name__}"
            )
        if logits.dim() != 3 or logits.shape[:2] != self.ids.shape:
            raise ValueError(
                f"a function from ids to logits must return [B, S, V] for ids [B, S] = {list(self.ids.shape)}, got "
                f"shape {list(logits.shape)}"
            )
        return logits.gather(1, columns[..., None].expand(-1, -1, logits.shape[2]))

    def advance(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        columns = lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        width = int(lengths.max()) + tokens.shape[1]  # a host read, which costs little beside a forward of all tokens
        kept = self.ids[:, :width]
        ids = F.pad(kept, (0, width - kept.shape[1]))
        every = torch.arange(width, device=tokens.device)
        self.ids = ids.masked_fill(every >= lengths[:, None], 0).scatter(1, columns, tokens)
        return self.score(columns)

    def keep_rows(self, rows: Tensor) -> None:
        self.ids = self.ids[rows]


class NextTokenCache:
    """A `NextTokenModel` as the decoders call a model: the interface of `CachedModel` and of `RollbackModel`.

    Args:
        model: Yields the logits.
        name: What an error calls it.
        first: [B, 1] int64, the column of each row's first token; only `extend` needs it.
    """

    can_drop_rows = True

    def __init__(self, model: NextTokenModel, name: str, first: Tensor | None = None) -> None:
        self._model, self._name, self._first = model, name, first
        self._prefixes: Prefixes | None = None

    def prefill(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Feeds the prompts; as `CachedModel.prefill`."""
        answer: Any = self._model.prefill(input_ids, attention_mask)
        if not isinstance(answer, Sequence) or len(answer) != 2:
            raise ValueError(
                f"the {self._name} {type(self._model).__name__} must return logits and prefixes after prefill, got "
                f"{type(answer).__name__}"
            )
        logits, self._prefixes = answer
        per_token = logits[:, None] if isinstance(logits, Tensor) and logits.dim() == 2 else logits
        return self._checked(per_token, len(input_ids), 1)[:, 0]

    def advance(self, token: Tensor, position: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Feeds one more token per row; as `CachedModel.advance`."""
        return self._advance(token[:, None], position[:, 0])[:, 0]

    def extend(self, tokens: Tensor, columns: Tensor, seen: int, *, logits: int, **_: Any) -> Tensor:
        """Feeds tokens at given columns, the prompts at first; as `RollbackModel.extend`."""
        assert self._first is not None
        if self._prefixes is not None:
            return self._advance(tokens, columns[:, 0] - self._first[:, 0])[:, -logits:]
        # The first call holds the prompts, of which no logits but the last are asked for, and then `logits` - 1 drafts.
        width = tokens.shape[1] - logits + 1
        mask = (torch.arange(width, device=tokens.device) >= self._first).long()
        found = self.prefill(tokens[:, :width], mask)[:, None]
        if logits == 1:
            return found
        return torch.cat([found, self._advance(tokens[:, width:], width - self._first[:, 0])], 1)

    def keep_rows(self, rows: Tensor) -> None:
        """Drops all rows but `rows` [m]."""
        assert self._prefixes is not None
        self._prefixes.keep_rows(rows)
        if self._first is not None:
            self._first = self._first[rows]

    def _advance(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        assert self._prefixes is not None
        return self._checked(self._prefixes.advance(tokens, lengths), *tokens.shape)

    def _checked(self, logits: Any, rows: int, tokens: int) -> Tensor:
        if not isinstance(logits, Tensor) or logits.shape[:-1] != (rows, tokens) or not logits.is_floating_point():
            got = type(logits).__name__
            if isinstance(logits, Tensor):
                got = f"{logits.dtype} of shape {list(logits.shape)}"
            raise ValueError(
                f"the {self._name} {type(self._model).__name__} must return floating-point logits of shape "
                f"[{rows}, {tokens}, V] (without the second dimension after prefill), got {got}"
            )
        # The decoders write merged EOS ids into these logits, and the operators take no float64.
        return logits.float() if logits.dtype == torch.float64 else logits.clone()
