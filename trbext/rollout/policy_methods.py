"""Checks that the methods of a rollout policy can be called as the decoders call them."""

from __future__ import annotations

from ..signatures import check_takes
from .policies import Policy

# The methods of a policy and what they are called with, by position.
POLICY = {
    "draw": ("step", "student_logits", "teacher_logits", "uniforms", "temperature"),
    "needs_teacher": ("step",),
    "is_student": ("step",),
    "keep_rows": ("rows",),
}


def check_policy_methods(name: str, policy: Policy) -> None:
    """ValueError unless `policy` defines `draw`, and all its methods take what `trbext.rollout.Policy`'s take."""
    if type(policy).draw is Policy.draw:
        raise ValueError(f"the rollout policy {name} must define draw({', '.join(POLICY['draw'])})")
    for method, arguments in POLICY.items():
        check_takes(f"{method} of the rollout policy {name}", getattr(policy, method), arguments)
