"""Where the demonstration's two models lie, and how configurations name them."""

from __future__ import annotations

from pathlib import Path

MODELS = Path(__file__).parent / "countsort_models"
NAMES = ("teacher", "student")


def model_path(name: str) -> str:
    """The folder behind "demo:teacher" or "demo:student"; other names unchanged. ValueError for another demo: name."""
    if not name.startswith("demo:"):
        return name
    model = name.removeprefix("demo:")
    if model not in NAMES:
        raise ValueError(f"the built-in models are {' and '.join(f'demo:{n}' for n in NAMES)}, got {name!r}")
    return str(MODELS / model)
