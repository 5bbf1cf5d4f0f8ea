"""Checks that the methods of a rollout policy can be called as the decoders call them."""

from __future__ import annotations

from ..user_objects import check_takes
from .policies import Policy

# The methods of a policy and their positional arguments.
POLICY = {
    "draw": ("step", "student_logits", "teacher_logits", "uniforms", "temperature"),
    "needs_teacher": ("step",),
    "is_student": ("step",),
    "keep_rows": ("rows",),
}


def check_policy_methods(name: str, policy: Policy) -> None:
    """Checks that a policy defines `draw`, and that its methods take the arguments of `trbext.rollout.Policy`.

    Args:
        name: What the error calls the policy.
        policy: An object of a user's class.

    Raises:
        ValueError: It does not.
    """
    if type(policy).draw is Policy.draw:
        raise ValueError(f"the rollout policy {name} must define draw({', '.join(POLICY['draw'])})")
    for method, arguments in POLICY.items():
        check_takes(f"{method} of the rollout policy {name}", getattr(policy, method), arguments)
