"""Checks that the installed verl is a version that trbext knows, and has the functions that trbext uses."""

from __future__ import annotations

import os
from pathlib import Path

from ..vllm.declarations import differences
from .interface import USES

TESTED = ("0.9.1",)  # runs were trained with these
OVERRIDE = "TRB_VERL_UNTESTED"  # set to 1, it lets any other version through


def check_version(version: str | None = None) -> str:
    """Checks that trbext was run with a version of verl.

    Args:
        version: None is the installed one.

    Returns:
        "run" or "untested".

    Raises:
        RuntimeError: It was not run, and TRB_VERL_UNTESTED is not 1.
    """
    if version is None:
        import verl

        version = str(verl.__version__)
    if version in TESTED:
        return "run"
    if os.environ.get(OVERRIDE) == "1":
        return "untested"
    raise RuntimeError(
        f"verl must be {' or '.join(TESTED)}, with which trbext was run, got {version}; {OVERRIDE}=1 tries it"
    )


def check_interface() -> None:
    """Checks that the installed verl has the functions and attributes that trbext calls, replaces or overrides.

    Raises:
        RuntimeError: Something is missing or takes other arguments. Names the version and the thing.
    """
    import verl

    for _, difference in differences(USES, Path(str(verl.__file__)).parent):
        raise RuntimeError(f"verl {verl.__version__}: {difference}")
