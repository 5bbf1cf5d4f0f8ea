"""Checks that training the student does not change a teacher."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..models.cached_model import unwrap
from ..models.next_token import is_transformers
from .mixture import Mixture
from .self_teacher import SelfTeacher, check_base_is_frozen


def check_separate(student: Any, teacher: Any) -> None:
    """Checks that training the student does not change the teacher.

    Args:
        student: May be inside DDP or PEFT.
        teacher: Likewise, or anything that yields logits; of a mixture each teacher is checked.

    Raises:
        ValueError: A parameter that will be trained belongs to the teacher as well. Only a `self_teacher` of this very
            student may share its weights, of which the base model has none that is trained.
    """
    if isinstance(teacher, Mixture):
        for each in teacher.teachers:
            check_separate(student, each)
    elif isinstance(teacher, SelfTeacher):
        if unwrap(teacher.student) is not unwrap(student):
            raise ValueError("the teacher is the self_teacher of another student: make it of the one that is trained")
        check_base_is_frozen(teacher.student)
    elif is_transformers(teacher):
        _check_parameters(student, teacher)


def _check_parameters(student: Any, teacher: Any) -> None:
    if not is_transformers(student):
        return
    trained = {
        _place(parameter): name
        for name, parameter in unwrap(student).named_parameters()
        if parameter.requires_grad and not parameter.is_meta and parameter.numel() > 0
    }
    for parameter in unwrap(teacher).parameters():
        if not parameter.is_meta and parameter.numel() > 0 and _place(parameter) in trained:
            raise ValueError(
                f"teacher and student must share no parameter that is trained, got one {type(unwrap(teacher)).__name__}"
                f" with {trained[_place(parameter)]!r} in both: load the teacher a second time, "
                "or take trbext.self_teacher(student) for the base model under a LoRA student, which holds its "
                "adapters as well"
            )


def _place(parameter: Tensor) -> int:
    """Returns where the values of a parameter are, which two that share them have in common."""
    try:
        return parameter.untyped_storage().data_ptr()
    except RuntimeError:  # torchao's integer weights are wrappers without a storage
        return id(parameter)
