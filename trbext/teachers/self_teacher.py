"""Lets the base model under a student's adapter be the teacher, without a second copy of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..models.model_kind import UnsupportedModel, check_kind

if TYPE_CHECKING:
    from peft import PeftModel


class SelfTeacher:
    """The base model of a `PeftModel`: a forward of it runs without the adapters. Made by `self_teacher`.

    Only the adapters are trained, so the teacher stays as it is while its student learns.
    """

    def __init__(self, student: PeftModel) -> None:
        self.student = student
        self.running = False  # whether the adapters are off, so that a forward is the teacher's
        self._adapters: dict[str, Any] = {}  # of the student, when `_adapted` was listed
        self._adapted: list[nn.Module] = []

    @property
    def config(self) -> Any:
        """The configuration of the base model."""
        return self.get_base_model().config

    @property
    def generation_config(self) -> Any:
        """The generation configuration of the base model."""
        return getattr(self.get_base_model(), "generation_config", None)

    def get_base_model(self) -> Any:
        """Returns the base model, whose layers hold the adapters: call it inside `without_adapters` only."""
        return self.student.get_base_model()

    def modules(self) -> Iterator[nn.Module]:
        """Yields the modules of the student, as `nn.Module.modules`."""
        modules: Iterator[nn.Module] = self.student.modules()
        return modules

    def adapted(self) -> list[nn.Module]:
        """Returns the layers with adapters, which are listed anew only if an adapter was added: a rollout asks for each
        token."""
        if self._adapters != self.student.peft_config:
            self._adapters = dict(self.student.peft_config)
            self._adapted = [module for module in self.student.modules() if _is_adapted(module)]
        return self._adapted

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Makes the student's forward that of its base model inside.

        PEFT's own `disable_adapter` also changes which parameters require a gradient, and takes milliseconds, which a
        rollout would pay for each token.
        """
        adapted: list[Any] = self.adapted()
        before = [module._disable_adapters for module in adapted]
        try:
            self.running = True
            for module in adapted:
                module._disable_adapters = True
            yield
        finally:
            self.running = False
            for module, disabled in zip(adapted, before, strict=True):
                module._disable_adapters = disabled

    def __call__(self, **inputs: Any) -> Any:
        """Returns what the base model does."""
        with self.without_adapters():
            return self.student(**inputs)


def self_teacher(student: PeftModel) -> SelfTeacher:
    """Makes a teacher of the base model under a student's adapter. It takes no memory of its own.

    It equals a copy of the base model bit for bit, however the adapter is trained.

    Args:
        student: A `PeftModel` with weight-based adapters, such as LoRA, that are not merged. It is not changed.

    Returns:
        The teacher, for `lockstep`, `speculative`, `mixture` and `TRBTrainer`.

    Raises:
        UnsupportedModel: (a ValueError) the student is no `PeftModel`, or its base without the adapters is not the
            model that it was: prompts are tuned, adapters are merged, or weights of the base are trained.
    """
    if not hasattr(student, "get_base_model") or not hasattr(student, "peft_config"):
        raise UnsupportedModel(f"self_teacher needs a PeftModel, got {type(student).__name__}")
    check_kind(student, "student")
    teacher = SelfTeacher(student)
    if not teacher.adapted():
        raise UnsupportedModel(f"self_teacher needs layers with adapters, and {type(student).__name__} has none")
    for name, module in student.named_modules():
        if getattr(module, "merged", False):
            raise UnsupportedModel(f"self_teacher needs adapters that are not merged: unmerge that of {name}")
    check_base_is_frozen(student)
    return teacher


def check_base_is_frozen(student: Any) -> None:
    """Checks that training a `PeftModel` changes nothing but its adapters.

    Raises:
        UnsupportedModel: A weight of the base model will be trained; names it.
    """
    adapters = {
        id(parameter) for module in student.modules() if _is_adapted(module) for parameter in _of_adapters(module)
    }
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and id(parameter) not in adapters:
            raise UnsupportedModel(
                f"the base model under a student can be its teacher only if it is not trained, but {name} is: freeze "
                "it, or load the teacher a second time"
            )


def _is_adapted(module: nn.Module) -> bool:
    """Whether PEFT has put something of its own into this module, which `_disable_adapters` turns off."""
    return isinstance(getattr(module, "_disable_adapters", None), bool)


def _of_adapters(module: nn.Module) -> Iterator[torch.nn.Parameter]:
    names: Any = getattr(module, "adapter_layer_names", ())  # of a layer such as LoRA's
    parts = [getattr(module, name, None) for name in names]
    parts.append(getattr(module, "modules_to_save", None))  # copies that are trained instead of the layer itself
    for part in parts:
        if isinstance(part, nn.Parameter):
            yield part
        elif isinstance(part, nn.Module):
            yield from part.parameters()
