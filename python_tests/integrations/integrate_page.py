"""Reads the examples of docs/hosts/integrate.md, and runs them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "hosts" / "integrate.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """Returns the code after the comment <!-- name -->."""
    return TEXT.split(f"<!-- {name} -->\n```py\n")[1].split("```")[0]


def examples() -> list[str]:
    """Returns the names of all examples of the page."""
    return re.findall(r"<!-- example: (\w+) -->", TEXT)


def run(name: str) -> dict[str, Any]:
    """Returns the variables after the lines that load the models and an example."""
    names: dict[str, Any] = {}
    exec(compile(block("models") + block(f"example: {name}"), f"integrate.md, {name}", "exec"), names)
    return names
