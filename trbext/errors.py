"""Defines errors that are no fault of the program, and the exit codes of commands."""

from __future__ import annotations

USAGE_ERROR = 2  # the user can correct it: one line on standard error says how
INSTALL_EXTRA = "pip install 'trbext[train]'"  # the packages that all but the operators and the rollouts need
INTERRUPTED = 130  # by a signal; the same command continues


class UsageError(Exception):
    """The user can correct what is wrong: shown as one line, exit code 2."""


class Interrupted(Exception):
    """A signal has stopped the run, which can be resumed."""


class NonFiniteTraining(FloatingPointError):
    """A loss or a gradient is NaN or infinite. The weights are those of the last finished optimizer step."""


class NonFiniteLogits(RuntimeError):
    """A rollout cannot continue: the logits of a model hold NaN or +inf, or exclude every token."""


class VerifierFailed(ValueError):
    """A verifier raised on every completion of an evaluation, so that its pass@1 would say nothing of the model."""


class EngineFailed(RuntimeError):
    """A rollout engine has ended, or could not do what it was asked. The message says which one and why."""
