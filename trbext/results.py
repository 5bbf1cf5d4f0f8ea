"""Defines the named tuples that the operators return, of tensors with one entry per row unless a comment says more."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Blend(NamedTuple):
    """The behavior policy over the whole vocabulary."""

    log_probs: Tensor  # [..., V] log mu, nats
    beta: Tensor  # [...] the paper's coefficient, in [0, 1]
    kl: Tensor  # [...] KL(mu_beta || pi_S), nats


class Solution(NamedTuple):
    """The coefficient of the behavior policy, without the policy."""

    beta: Tensor  # [...] the paper's coefficient, in [0, 1]
    kl: Tensor  # [...] KL(mu_beta || pi_S), nats
    sweeps: Tensor  # [...] int32, how often the row was read to find it


class Sample(NamedTuple):
    """One token per row from the behavior policy, with the log-probabilities a trainer needs."""

    token: Tensor  # [...] int64; -1 if the row is at fault
    log_prob: Tensor  # [...] log mu(token), nats
    student_log_prob: Tensor  # [...] log pi_S(token), nats
    teacher_log_prob: Tensor  # [...] log pi_T(token), nats; -inf if the teacher excludes the token
    beta: Tensor  # [...] the paper's coefficient, in [0, 1]
    kl: Tensor  # [...] KL(mu_beta || pi_S), nats


class Verification(NamedTuple):
    """The accepted drafts of B requests (N rows in all), each followed by the token drawn at its stop."""

    tokens: Tensor  # [B, width] int64: accepted drafts, then at most one drawn token, then -1
    emitted: Tensor  # [B] int32, how many tokens; -1 if the request met a fault
    accepted: Tensor  # [B] int32, how many of them are drafts: emitted or one less, also before a fault
    beta: Tensor  # [N]; NaN for rows at fault, after the stop of a request, or of no request
    kl: Tensor  # [N] KL(mu_beta || pi_S), nats; NaN for the same rows
    log_probs: Tensor  # [B, width, 3] log pi_S, pi_T, mu of the tokens, nats, NaN past them; [0, 0, 3] unless wanted
