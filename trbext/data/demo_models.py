"""Finds the two models of the demonstration by the names that configurations give them."""

from __future__ import annotations

from pathlib import Path

MODELS = Path(__file__).parent / "countsort_models"
NAMES = ("teacher", "student")


def model_path(name: str) -> str:
    """Returns the folder of a built-in model.

    Args:
        name: "demo:teacher", "demo:student", or the name of any other model.

    Returns:
        The folder; a name without "demo:" as it is.

    Raises:
        ValueError: The name begins with "demo:" and is no built-in model.
    """
    if not name.startswith("demo:"):
        return name
    model = name.removeprefix("demo:")
    if model not in NAMES:
        raise ValueError(f"the built-in models are {' and '.join(f'demo:{n}' for n in NAMES)}, got {name!r}")
    return str(MODELS / model)
