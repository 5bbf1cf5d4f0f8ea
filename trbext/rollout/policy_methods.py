"""Checks that the methods of a rollout policy can be called as the decoders call them."""

from __future__ import annotations

from ..user_objects import check_takes
from .policy import Policy

# The methods of a policy and their positional arguments.
POLICY = {
    "draw": ("step", "student_logits", "teacher_logits", "uniforms", "temperature"),
    "needs_teacher": ("step",),
    "is_student": ("step",),
    "keep_rows": ("rows",),
    "begin": ("rows", "device"),
    "draw_after": ("memory", "step", "student_logits", "teacher_logits", "uniforms", "temperature"),
}


def check_policy_methods(name: str, policy: Policy) -> None:
    """Checks that a policy defines `draw`, or both `begin` and `draw_after`, with the arguments of
    `trbext.rollout.Policy`.

    Args:
        name: What the error calls the policy.
        policy: An object of a user's class.

    Raises:
        ValueError: It does not.
    """
    kind = type(policy)
    if (kind.begin is Policy.begin) != (kind.draw_after is Policy.draw_after):
        raise ValueError(
            f"the rollout policy {name} must define begin({', '.join(POLICY['begin'])}) and "
            f"draw_after({', '.join(POLICY['draw_after'])}), both or none"
        )
    if kind.draw is Policy.draw and kind.draw_after is Policy.draw_after:
        raise ValueError(f"the rollout policy {name} must define draw({', '.join(POLICY['draw'])})")
    for method, arguments in POLICY.items():
        check_takes(f"{method} of the rollout policy {name}", getattr(policy, method), arguments)
