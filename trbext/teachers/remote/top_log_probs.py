"""Brings the log-probs that a server tells of a teacher to the vocabulary that it shares with the student."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...errors import EngineFailed
from ...limits import LARGEST_EXCESS_OF_MASS
from ...top_k import TopK
from ...vocab import Alignment

# Servers write log 0, which JSON does not have, as a large negative number (vLLM: -9999).
LOG_OF_ZERO = -9000.0


def aligned_top(rows: Sequence[Mapping[int, float]], alignment: Alignment, k: int) -> TopK:
    """Makes one tensor of what a server told of n prefixes.

    Tokens that the student lacks leave, and their mass is spread over all others as `trbext.align` does: the teacher's
    distribution given that the token is one of both. End tokens become the student's.

    Args:
        rows: By token id, the log-probs at each prefix at temperature 1.
        alignment: The vocabulary that both models share.
        k: Columns.

    Returns:
        ids [n, k] int64, most probable first, and log_probs [n, k] float32; -1 and -inf if there are fewer tokens.

    Raises:
        EngineFailed: The numbers are no log-probs.
    """
    ids = torch.full((len(rows), k), -1, dtype=torch.int64)
    log_probs = torch.full((len(rows), k), -torch.inf)
    for row, told in enumerate(rows):
        kept: dict[int, float] = {}
        gone = 0.0
        for token, log_prob in told.items():
            probability = _probability(token, log_prob)
            if token in alignment.duplicates:
                token = alignment.stop
            if 0 <= token < alignment.width:
                kept[token] = kept.get(token, 0.0) + probability
            else:
                gone += probability
        _check_mass(sum(kept.values()) + gone)
        ordered = sorted(kept.items(), key=lambda item: -item[1])[:k]
        left = max(1.0 - gone, 1e-30)
        for column, (token, probability) in enumerate(ordered):
            ids[row, column] = token
            log_probs[row, column] = math.log(probability / left) if probability > 0 else -math.inf
    return TopK(ids, log_probs)


def aligned_tokens(ids: Tensor, alignment: Alignment) -> list[list[int]]:
    """Returns the teacher's ids of tokens [n, k] of the common vocabulary: all of its end tokens for the student's."""
    return [list(dict.fromkeys(name for token in row for name in _names(token, alignment))) for row in ids.tolist()]


def aligned_log_probs(rows: Sequence[Mapping[int, float]], ids: Tensor, alignment: Alignment) -> Tensor:
    """Finds the log-probs of given tokens in what a server told of n prefixes.

    Args:
        rows: By token id, the log-probs at each prefix, of `aligned_tokens` and perhaps others.
        ids: [n, k] int64, of the common vocabulary.
        alignment: The vocabulary that both models share.

    Returns:
        [n, k] float32, nats. Tokens that the student lacks keep their mass, which is not known.

    Raises:
        EngineFailed: A token is missing, or the numbers are no log-probs.
    """
    found = torch.full(ids.shape, -torch.inf)
    for row, (told, wanted) in enumerate(zip(rows, ids.tolist(), strict=True)):
        masses: dict[int, float] = {}
        for token in wanted:
            names = _names(token, alignment)
            missing = [name for name in names if name not in told]
            if missing:
                raise EngineFailed(f"the teacher's server was asked about token {missing[0]} and tells nothing of it")
            masses[token] = sum(_probability(name, told[name]) for name in names)
        _check_mass(sum(masses.values()))
        found[row] = torch.tensor([masses[token] for token in wanted], dtype=torch.float64).log().float()
    return found


def _names(token: int, alignment: Alignment) -> tuple[int, ...]:
    return (token, *alignment.duplicates) if token == alignment.stop else (token,)


def _probability(token: int, log_prob: float) -> float:
    if math.isnan(log_prob) or log_prob > LARGEST_EXCESS_OF_MASS:
        raise EngineFailed(f"the teacher's server gave {log_prob} as the log-prob of token {token}")
    return math.exp(log_prob) if log_prob > LOG_OF_ZERO else 0.0


def _check_mass(total: float) -> None:
    if total > 1 + LARGEST_EXCESS_OF_MASS:
        raise EngineFailed(f"the teacher's server gave probabilities that sum to {total:.6g}")
