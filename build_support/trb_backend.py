"""Wraps scikit-build-core as a PEP 517 backend that asks for torch only if the target environment has none.

A static `requires = ["torch"]` would make every user download a second torch (several GB) into the isolated build
environment although one is installed; find_torch.py finds the installed one.
"""

from __future__ import annotations

from typing import Any

import find_torch
from scikit_build_core import build as scikit_build
from scikit_build_core.build import *  # noqa: F403  (the hooks that need no change)

TORCH_REQUIREMENT = "torch>={}.{}".format(*find_torch.MINIMUM)


def _torch_if_absent() -> list[str]:
    return [] if find_torch.find() else [TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Returns what a build of a wheel needs besides the static requirements.

    Args:
        config_settings: Of the front end; passed on.
    """
    return [*scikit_build.get_requires_for_build_wheel(config_settings), *_torch_if_absent()]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Returns what an editable build needs besides the static requirements.

    Args:
        config_settings: Of the front end; passed on.
    """
    return [*scikit_build.get_requires_for_build_editable(config_settings), *_torch_if_absent()]
