"""Defines a teacher of which only the k tokens that a server or a cache reports are known."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TopK(NamedTuple):
    """The teacher's log-probabilities of k tokens per prefix. The rest of its mass, 1 - sum exp(log_probs), is taken to
    be spread over all other tokens as the student's is.

    log pi_T - log pi_S is then one number over the rest, so that KL(mu || pi_S) over the k tokens and the rest together
    is the KL over the vocabulary, and the budget holds exactly. Among the teachers that have these k log-probabilities
    this is the one with the least KL(pi_T || pi_S).

    The logarithms of a teacher that is sure of its k tokens add up to 1, whatever its rest is. A rest below 1e-6 is
    lost in the rounding of float32. The teacher then is taken to have the student's rest, but no more than 1e-6.

    Log-probabilities are natural logarithms over the whole vocabulary at the temperature of the call: `temperature`
    divides the student's logits only, because the rest of the teacher's mass at another temperature is not known. The
    order of the k tokens means nothing.

    Faults of a row: an id outside [-1, V); an id twice; a log-probability that is NaN; probabilities whose sum exceeds
    1 by more than 1e-3, which no rounding explains; all V tokens listed with probability 0.
    """

    ids: Tensor  # [..., k] int32 or int64, in [0, V), or -1 for no token
    log_probs: Tensor  # [..., k] float32, nats; -inf: probability 0; not looked at where the id is -1
