"""Checks that what a user wrote can be called as it will be: a verifier, a rollout policy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .rollout import Policy

VERIFIER = ("prompt", "completion", "row")
# The methods of a policy and what they are called with, by position.
POLICY = {
    "draw": ("step", "student_logits", "teacher_logits", "uniforms", "temperature"),
    "needs_teacher": ("step",),
    "is_student": ("step",),
    "keep_rows": ("rows",),
}


def check_verifier_signature(name: str, verifier: Callable[..., Any]) -> None:
    """ValueError unless `verifier` is a function of (prompt, completion, row) that returns its verdict."""
    if isinstance(verifier, type):
        raise ValueError(f"the verifier {name!r} must be a function, got the class {verifier.__name__}")
    if inspect.iscoroutinefunction(verifier) or inspect.isgeneratorfunction(verifier):
        raise ValueError(f"the verifier {name!r} must be a plain function that returns True or False, not async")
    _check_takes(f"the verifier {name!r}", verifier, VERIFIER)


def check_policy_signatures(name: str, policy: Policy) -> None:
    """ValueError unless `policy` defines `draw`, and all its methods take what `trbext.rollout.Policy`'s take."""
    if type(policy).draw is Policy.draw:
        raise ValueError(f"the rollout policy {name} must define draw({', '.join(POLICY['draw'])})")
    for method, arguments in POLICY.items():
        _check_takes(f"{method} of the rollout policy {name}", getattr(policy, method), arguments)


def made_with(name: str, make: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
    """`make(**kwargs)`. ValueError: the arguments do not fit, or it raises."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # a few classes written in C have none
        signature = None
    try:
        if signature is not None:
            signature.bind(**kwargs)
    except TypeError as error:
        given = ", ".join(sorted(kwargs)) or "none"
        raise ValueError(f"{name} takes {signature}, got rollout_policy_kwargs {given}: {error}") from error
    try:
        return make(**kwargs)
    except Exception as error:
        raise ValueError(f"{name} could not be made: {type(error).__name__}: {error}") from error


def _check_takes(what: str, function: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a few functions written in C have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{what} must take ({', '.join(arguments)}), but takes {signature}: {error}") from error
